"""Translation pairs: fetching, reading, splitting and prompting."""

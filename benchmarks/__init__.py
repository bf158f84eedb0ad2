"""What the ops cost, beside the memory floor and other people's ways to the same numbers. See table.py."""

"""Models and tokenizers by name, folder or file."""

"""What a finished experiment says: numbers, sentences, tables, figures, the page."""

"""The results of a finished experiment: numbers, sentences, tables, figures and the page."""

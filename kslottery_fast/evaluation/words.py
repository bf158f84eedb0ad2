"""Numbers in words, for reprs and summaries."""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless the count is one.

    >>> counted(1, "sentence"), counted(0, "sentence"), counted(1300, "sentence")
    ('1 sentence', '0 sentences', '1,300 sentences')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

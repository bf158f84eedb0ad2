"""Making text readable that may hold anything: invisible characters become visible."""

import unicodedata

_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def visible_token(token: str) -> str:
    r"""Return a token with its white space and invisible characters made visible.

    Examples
    --------
    >>> visible_token(" Spanish"), visible_token("\n"), visible_token("\u202e"), visible_token("")
    ('␣Spanish', '↵', '\\u202e', '(empty)')
    """
    # Category C: control, format, surrogate, unassigned. Category Z: spaces. U+0020 gets a sign of its own below.
    signs: dict[str, str | int | None] = {
        sign: escape_sign(sign) for sign in token if unicodedata.category(sign)[0] in "CZ"
    }
    signs |= {" ": "␣", "\n": "↵", "\t": "⇥"}
    return token.translate(str.maketrans(signs)) or "(empty)"


def visible_text(text: str) -> str:
    r"""Return prose with escapes for the characters that a page cannot hold or that would reorder it.

    Examples
    --------
    >>> visible_text("two\nlines\x00")
    'two\nlines\\u0000'
    """
    hidden = {sign for sign in text if unicodedata.category(sign) in ("Cc", "Cs", "Cn")} - {"\n", "\t"}
    signs: dict[str, str | int | None] = {sign: escape_sign(sign) for sign in hidden | set(_REORDERING)}
    return text.translate(str.maketrans(signs))


def visible_name(name: str) -> str:
    r"""Return a name of a file or of what it holds for a line on a terminal, with escapes for line breaks too.

    Examples
    --------
    >>> print(visible_name("a name\nof two lines\x1b[31m"))
    a name\u000aof two lines\u001b[31m
    """
    return visible_text(name).replace("\n", escape_sign("\n")).replace("\t", escape_sign("\t"))


def escape_sign(sign: str) -> str:
    r"""Return the character as ``\uXXXX`` or ``\UXXXXXXXX``.

    Examples
    --------
    >>> print(escape_sign("\u202e"))
    \u202e
    """
    return f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"

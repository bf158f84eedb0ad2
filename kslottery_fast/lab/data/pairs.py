"""Translation pairs and what makes one usable: the cleaning rules, each with a count of what it dropped.

The rules, in order; the first that holds drops the pair and is counted under its name:

- ``empty``: the source or the target is empty after normalisation, or holds neither a letter nor a digit.
- ``several lines``: a line break inside the source or the target (one at either end is trimmed).
- ``too long``: the source or the target has more than ``max_characters`` characters.
- ``identical``: source and target are the same text: nothing was translated.
- ``placeholders``: a ``%s``, ``%(name)s`` or ``{name}`` in the source or the target.
- ``markup``: an HTML tag in the source or the target.
- ``too few words``: the source has fewer than ``min_words`` words, e.g. a button's label.
- ``duplicate source``: an earlier pair has the same source; one source keeps one target.

Placeholders and tags go because a model copies them: they earn BLEU, whose tokenizer cuts ``%(name)s`` into five
tokens, without a word being translated.

Before that the text is normalised: Unicode NFC, runs of white space to one blank, none at the ends.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# A conversion such as %s, %d, %(name)s, %.2f, %%; the blank flag is left out: "100 % of" is prose.
_PLACEHOLDER = re.compile(r"%(?:\([^)]*\))?[#0+-]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa%]|\{[^{}]*\}")
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?=[\s/>])")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Pair:
    """A source text, its translation, and where it was read (file and, where there is one, line)."""

    source: str
    target: str
    origin: str = ""


def clean_pairs(
    pairs: Iterable[Pair], *, max_characters: int = 200, min_words: int = 1
) -> tuple[list[Pair], Counter[str]]:
    """The usable pairs in their order, and how many the rules of this module dropped, by rule."""
    kept: dict[str, Pair] = {}
    dropped: Counter[str] = Counter()
    for pair in pairs:
        clean = Pair(normalise(pair.source), normalise(pair.target), pair.origin)
        reason = _why_not(pair, clean, max_characters, min_words)
        if reason is None and kept.setdefault(clean.source, clean) is not clean:
            reason = "duplicate source"
        if reason:
            dropped[reason] += 1
    return list(kept.values()), dropped


def normalise(text: str) -> str:
    r"""NFC, with runs of white space as one blank and none at the ends.

    >>> normalise("  Save\u00a0 it\n")
    'Save it'
    """
    return _SPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def comparison_key(text: str) -> str:
    """What texts that read the same have in common: letters, digits and marks, case folded, single blanks.

    >>> comparison_key("Save, and add another…") == comparison_key("save and add ANOTHER")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SPACE.sub(" ", "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded)).strip()


def _why_not(raw: Pair, clean: Pair, max_characters: int, min_words: int) -> str | None:
    texts = (clean.source, clean.target)
    rules = {
        "empty": not all(map(comparison_key, texts)),
        "several lines": any(len(text.strip().splitlines()) > 1 for text in (raw.source, raw.target)),
        "too long": max(map(len, texts)) > max_characters,
        "identical": clean.source == clean.target,
        "placeholders": any(map(_PLACEHOLDER.search, texts)),
        "markup": any(map(_TAG.search, texts)),
        "too few words": len(clean.source.split()) < min_words,
    }
    return next((name for name, holds in rules.items() if holds), None)

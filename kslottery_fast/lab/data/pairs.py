"""Translation pairs and what makes one usable: the cleaning rules, each with a count of what it dropped.

Placeholders and tags go because a model copies them: they earn BLEU, whose tokenizer cuts ``%(name)s`` into five
tokens, without a word being translated.
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


@dataclass(frozen=True)
class Pair:
    """A source text, its translation, and where it was read (file and, where there is one, line)."""

    source: str
    target: str
    origin: str = ""


def clean_pairs(
    pairs: Iterable[Pair], *, max_characters: int = 200, min_words: int = 1
) -> tuple[list[Pair], Counter[str]]:
    """The usable pairs in their order, normalised, and how many each rule dropped; one source keeps one target."""
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
    return " ".join(unicodedata.normalize("NFC", text).split())


def comparison_key(text: str) -> str:
    """What texts that read the same have in common: letters, digits and marks, case folded, single blanks.

    >>> comparison_key("Save, and add another…") == comparison_key("save and add ANOTHER")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded).split())


def _why_not(raw: Pair, clean: Pair, max_characters: int, min_words: int) -> str | None:
    texts = (clean.source, clean.target)
    rules = {  # in this order: the first that holds is the one that counts
        "empty": not all(map(comparison_key, texts)),  # neither a letter nor a digit in the source or the target
        "several lines": any(len(text.strip().splitlines()) > 1 for text in (raw.source, raw.target)),
        "too long": max(map(len, texts)) > max_characters,
        "identical": clean.source == clean.target,  # nothing was translated
        "placeholders": any(map(_PLACEHOLDER.search, texts)),
        "markup": any(map(_TAG.search, texts)),
        "too few words": len(clean.source.split()) < min_words,  # e.g. a button's label
    }
    return next((name for name, holds in rules.items() if holds), None)

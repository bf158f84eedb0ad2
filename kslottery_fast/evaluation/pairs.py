"""Translation pairs: what makes one usable, with a count of what each rule dropped, and splits without leaks.

Placeholders and tags go because a model copies them: they earn BLEU, whose tokenizer cuts ``%(name)s`` into five
tokens, without a word being translated.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kslottery_fast.base.errors import InputError

Splits = tuple[tuple["Pair", ...], tuple["Pair", ...], tuple["Pair", ...]]

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
    """Normalise pairs, and leave out those that would make a measurement of translation less than it seems.

    Parameters
    ----------
    pairs : iterable of Pair
        Those with several lines, placeholders, tags, no letter, or a target like the source go.
    max_characters : int
        Longest source and longest target.
    min_words : int
        Fewest words of a source.

    Returns
    -------
    usable : list of Pair
        In their order; one source keeps its first target.
    dropped : Counter
        How many pairs each rule dropped.
    """
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


def split_pairs(pairs: Iterable[Pair], *, train: int, validation: int, test: int, seed: int) -> Splits:
    """Split so that no source and no target stands in two splits, in whatever case and punctuation.

    Pairs that share a source or a target, directly or over other pairs, form a group, and a group goes into one
    split whole. Groups are shuffled, then fill test, validation and train in this order, each exactly to its size.

    Parameters
    ----------
    pairs : iterable of Pair
        In any order: it does not matter.
    train, validation, test : int
        Pairs of each split.
    seed : int
        Of the shuffling.

    Returns
    -------
    train, validation, test : tuples of Pair

    Raises
    ------
    InputError
        Groups too large for the sizes.
    """
    groups = _groups(sorted(set(pairs), key=lambda pair: (pair.source, pair.target, pair.origin)))
    random.Random(seed).shuffle(groups)
    filled: dict[str, tuple[Pair, ...]] = {}
    for name, size in (("test", test), ("validation", validation), ("train", train)):
        chosen: list[Pair] = []
        rest: list[list[Pair]] = []
        for group in groups:
            room = size - len(chosen)
            if room and (len(group) <= room or name == "train"):
                # Nothing comes after train, so a group may be cut there: what is left over is not used.
                chosen += group[:room]
            else:
                rest.append(group)
        if len(chosen) < size:
            raise InputError(
                f"only {len(chosen):,} of {size:,} pairs for {name} can be had without sharing a source or a "
                "target with another split; ask for fewer, or give a corpus with fewer repetitions"
            )
        filled[name], groups = tuple(chosen), rest
    splits = filled["train"], filled["validation"], filled["test"]
    check_no_leak(splits)
    return splits


def check_no_leak(splits: Sequence[Sequence[Pair]]) -> None:
    """Raise RuntimeError if two of the splits share a source or a target, compared by `comparison_key`."""
    seen: dict[tuple[str, str], int] = {}
    for number, split in enumerate(splits):
        for pair in split:
            for side, key in _keys(pair):
                if seen.setdefault((side, key), number) != number:
                    raise RuntimeError(f"leak: the {side} {getattr(pair, side)!r} stands in two splits")


def _keys(pair: Pair) -> tuple[tuple[str, str], tuple[str, str]]:
    """What no other split may have: the pair's source and its target, as they read."""
    return ("source", comparison_key(pair.source)), ("target", comparison_key(pair.target))


def _groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Connected components of pairs that share a key, by their first pair."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[tuple[str, str], int] = {}
    edges = [(i, first.setdefault(key, i)) for i, pair in enumerate(pairs) for key in _keys(pair)]
    graph = coo_array((np.ones(len(edges)), np.array(edges, int).reshape(-1, 2).T), shape=(len(pairs), len(pairs)))
    members: dict[int, list[Pair]] = {}
    for pair, label in zip(pairs, connected_components(graph, directed=False)[1].tolist(), strict=True):
        members.setdefault(label, []).append(pair)
    return list(members.values())


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

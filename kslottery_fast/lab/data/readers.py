"""Reading translation pairs from gettext catalogues, in wheels or folders, and from .tsv, .csv and .jsonl tables.

Catalogue entries that are fuzzy, obsolete or untranslated, or that have plural forms, are left out and counted. Plurals
are left out because it depends on the language which form translates the singular: form 0 is "one" in Spanish, "zero"
in Arabic, and "1, 21, 31, ..." in Russian.
"""

import csv
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.pairs import Pair

from .languages import Language, canonical_code

_LOCALE = re.compile(r"(?:^|/)([^/]+)/LC_MESSAGES/[^/]+\.po$")
_LANGUAGE_HEADER = re.compile(r'^"Language:\s*([A-Za-z_@-]+)\s*\\n"', re.MULTILINE)
_LANGUAGE_NAME = re.compile(r"([a-z]{2,3}(?:[_-][A-Za-z]+)?)")


def read_wheel_catalogues(wheel: Path, label: str, language: Language, skipped: Counter[str]) -> list[Pair]:
    """Read the pairs from English to ``language`` of every catalogue in a wheel, in the order of file names.

    Parameters
    ----------
    wheel : Path
        The wheel.
    label : str
        Its name in the origin of each pair.
    language : Language
        The target language.
    skipped : Counter
        Counts entries that are left out, by reason.
    """
    pairs: list[Pair] = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            located = _LOCALE.search(name)
            if located and canonical_code(located[1]) == language.code:
                pairs += _entries(archive.read(name).decode("utf-8-sig"), f"{label}/{name}", skipped)
    return pairs


def read_catalogue_folder(folder: Path, language: Language, skipped: Counter[str]) -> list[Pair]:
    """Read the pairs of one language from the .po files of a folder, or from one .po file.

    The language of a file is given by its folder ``<code>/LC_MESSAGES``, by its header ``Language``, or by its own name
    (``es.po``), in this order. A file that gives none is taken to be in the language that is asked for.

    Parameters
    ----------
    folder : Path
        The folder or file.
    language : Language
        The target language.
    skipped : Counter
        Counts entries that are left out, by reason.

    Raises
    ------
    InputError
        No .po file, no catalogue in the language, or a file that cannot be read.
    """
    files = sorted(folder.rglob("*.po")) if folder.is_dir() else [folder]
    if not files:
        raise InputError(
            f"{folder} holds no .po file; give a folder of gettext catalogues, or a .tsv, .csv or .jsonl file"
        )
    pairs: list[Pair] = []
    others: set[str] = set()
    for file in files:
        text = _read_text(file)
        stated = _LOCALE.search(file.as_posix()) or _LANGUAGE_HEADER.search(text) or _LANGUAGE_NAME.fullmatch(file.stem)
        code = canonical_code(stated[1]) if stated else language.code
        if code == language.code:
            origin = file.relative_to(folder).as_posix() if folder.is_dir() else file.name
            pairs += _entries(text, origin, skipped)
        else:
            others.add(code)
    if others and not pairs and not skipped:
        raise InputError(
            f"{folder} has no catalogue in {language.name} ({language.code}); it has: {', '.join(sorted(others))}"
        )
    return pairs


def read_table(path: Path) -> list[Pair]:
    """Read the pairs of a .tsv, .csv or .jsonl file in UTF-8. Blank lines are skipped.

    A table has two columns, source and target. It may instead begin with a line of column names that include ``source``
    and ``target``, in any order; other columns are then ignored. In a .tsv file quotes are plain characters, and in a
    .csv file they quote. Each line of a .jsonl file is an object with the strings ``source`` and ``target``.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    InputError
        Another kind of file, or one that cannot be read. The message names the line.
    """
    readers = {".tsv": _read_columns, ".csv": _read_columns, ".jsonl": _read_jsonl}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise InputError(
            f"{path}: unknown kind of corpus {path.suffix!r}; expected .tsv, .csv, .jsonl, .po or a folder"
        )
    return list(read(path, _read_text(path)))


def _read_columns(path: Path, text: str) -> Iterator[Pair]:
    lines = io.StringIO(text, newline="")
    tabs = path.suffix.lower() == ".tsv"
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    source, target, width = 0, 1, 2
    first = True
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            names = [cell.strip().lower() for cell in row]
            if first and "source" in names and "target" in names:
                source, target, width = names.index("source"), names.index("target"), len(row)
            elif len(row) != width:
                raise InputError(
                    f"{path} line {rows.line_num}: {len(row)} columns, expected {width} (source and target)"
                )
            else:
                yield Pair(row[source], row[target], f"{path.name}:{rows.line_num}")
            first = False
    except csv.Error as error:
        raise InputError(f"{path} line {rows.line_num}: {error}") from error


def _read_jsonl(path: Path, text: str) -> Iterator[Pair]:
    # Not splitlines, because JSON strings may hold U+2028 and similar characters.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number} is not JSON ({error})") from error
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("source", "target")):
            raise InputError(f'{path} line {number}: expected an object {{"source": "...", "target": "..."}}')
        yield Pair(record["source"], record["target"], f"{path.name}:{number}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def _entries(text: str, origin: str, skipped: Counter[str]) -> Iterator[Pair]:
    import polib

    if "msgid" not in text:  # polib takes a short text without entries for a file name
        raise InputError(f"{origin} is not a gettext catalogue: it has no msgid")
    try:
        catalogue = polib.pofile(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{origin} is not a readable gettext catalogue ({error})") from error
    for entry in catalogue:
        rules = {"obsolete": entry.obsolete, "plural": entry.msgid_plural, "fuzzy": entry.fuzzy}
        rules["untranslated"] = not entry.msgstr.strip()
        reason = next((name for name, holds in rules.items() if holds), None)
        if reason:
            skipped[reason] += 1
        else:
            yield Pair(entry.msgid, entry.msgstr, f"{origin}:{entry.linenum}")

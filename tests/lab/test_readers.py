"""Reading catalogues and tables: what is read, what is left out, what each bad file says."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.pairs import Pair
from kslottery_fast.lab.data.languages import find_language
from kslottery_fast.lab.data.readers import read_catalogue_folder, read_table, read_wheel_catalogues

SPANISH = find_language("es")
HEADER = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n'
CATALOGUE = (
    HEADER
    + """
msgid "Save"
msgstr "Guardar"

msgctxt "verb"
msgid "Open the "
"page"
msgstr "Abrir la página"

#, fuzzy
msgid "Maybe"
msgstr "Quizás"

msgid "Later"
msgstr ""

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d archivo"
msgstr[1] "%d archivos"

#~ msgid "Gone"
#~ msgstr "Ido"
"""
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_catalogue_gives_its_finished_entries_and_counts_the_others(tmp_path):
    skipped: Counter[str] = Counter()
    pairs = read_catalogue_folder(write(tmp_path / "es.po", CATALOGUE), SPANISH, skipped)
    assert [(pair.source, pair.target) for pair in pairs] == [("Save", "Guardar"), ("Open the page", "Abrir la página")]
    assert [pair.origin for pair in pairs] == ["es.po:5", "es.po:8"]
    assert skipped == {"fuzzy": 1, "untranslated": 1, "plural": 1, "obsolete": 1}


def test_a_folder_gives_the_catalogues_of_one_language_by_folder_header_or_file_name(tmp_path):
    def one(source: str) -> str:
        return HEADER + f'msgid "{source}"\nmsgstr "x"\n'

    write(tmp_path / "app" / "locale" / "es" / "LC_MESSAGES" / "django.po", one("by folder"))
    write(tmp_path / "app" / "locale" / "es_ES" / "LC_MESSAGES" / "django.po", one("by folder, with region"))
    write(tmp_path / "app" / "locale" / "es_MX" / "LC_MESSAGES" / "django.po", one("another region"))
    write(tmp_path / "header.po", one("by header").replace('charset=UTF-8\\n"', 'charset=UTF-8\\n"\n"Language: es\\n"'))
    write(tmp_path / "french.po", one("by header, French").replace('"Content', '"Language: fr\\n"\n"Content'))
    write(tmp_path / "es.po", one("by file name"))
    write(tmp_path / "ca.po", one("by file name, Catalan"))
    write(tmp_path / "messages.po", one("states none"))
    pairs = read_catalogue_folder(tmp_path, SPANISH, Counter())
    assert sorted(pair.source for pair in pairs) == [
        "by file name", "by folder", "by folder, with region", "by header", "states none",
    ]  # fmt: skip


def test_a_wheel_gives_the_catalogues_of_one_language_and_runs_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for code in ("es", "es_ES", "es_AR", "ca"):
            wheel.writestr(f"app/locale/{code}/LC_MESSAGES/django.po", CATALOGUE.replace("Save", f"Save {code}"))
        wheel.writestr("app/locale/es/LC_MESSAGES/django.mo", b"\0")
    skipped: Counter[str] = Counter()
    pairs = read_wheel_catalogues(tmp_path / "a.whl", "App", SPANISH, skipped)
    assert [pair.source for pair in pairs] == ["Save es", "Open the page", "Save es_ES", "Open the page"]
    assert pairs[0].origin == "App/app/locale/es/LC_MESSAGES/django.po:5"
    assert skipped["fuzzy"] == 2


def test_a_folder_without_catalogues_or_without_the_language_says_so(tmp_path):
    with pytest.raises(InputError, match=r"holds no .po file; give a folder of gettext catalogues, or a .tsv"):
        read_catalogue_folder(tmp_path, SPANISH, Counter())
    write(tmp_path / "ca.po", CATALOGUE)
    write(tmp_path / "de.po", CATALOGUE)
    with pytest.raises(InputError, match=r"has no catalogue in Spanish \(es\); it has: ca, de"):
        read_catalogue_folder(tmp_path, SPANISH, Counter())


@pytest.mark.parametrize("text", ["nothing here", CATALOGUE + "\nno keyword\n", "es.po"])
def test_a_broken_catalogue_is_named(tmp_path, text):
    with pytest.raises(InputError, match=r"es.po is not a (readable )?gettext catalogue"):
        read_catalogue_folder(write(tmp_path / "es.po", text), SPANISH, Counter())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", 'Save "it"\tGuardar "lo"\n\nOpen, now\tAbrir\n'),
        ("a.tsv", '\ufeffid\tTarget\tSource\n1\tGuardar "lo"\tSave "it"\n2\tAbrir\tOpen, now\n'),
        ("a.csv", '"Save ""it""","Guardar ""lo"""\n"Open, now",Abrir\n'),
        ("a.CSV", 'source,target\r\n"Save ""it""","Guardar ""lo"""\r\n"Open, now",Abrir\r\n'),
        ("a.jsonl", '{"source": "Save \\"it\\"", "target": "Guardar \\"lo\\"", "id": 1}\n\n'
                    '{"target": "Abrir", "source": "Open, now"}\n'),
    ],
)  # fmt: skip
def test_tables_of_every_kind_give_the_same_pairs(tmp_path, name, text):
    pairs = read_table(write(tmp_path / name, text))
    assert [(p.source, p.target) for p in pairs] == [('Save "it"', 'Guardar "lo"'), ("Open, now", "Abrir")]
    assert pairs[0].origin in {f"{name}:1", f"{name}:2"}


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    text = json.dumps({"source": "a\u2028b", "target": "c"}, ensure_ascii=False)
    assert read_table(write(tmp_path / "a.jsonl", text)) == [Pair("a\u2028b", "c", "a.jsonl:1")]
    assert read_table(write(tmp_path / "a.tsv", "a\u2028b\tc\n")) == [Pair("a\u2028b", "c", "a.tsv:1")]


def test_a_quoted_csv_cell_may_hold_a_line_break(tmp_path):
    assert read_table(write(tmp_path / "a.csv", '"a\nb",c\n')) == [Pair("a\nb", "c", "a.csv:2")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "Save\tGuardar\nOpen\n", r"a.tsv line 2: 1 columns, expected 2 \(source and target\)"),
        ("a.csv", "Save,Guardar,x\n", r"a.csv line 1: 3 columns, expected 2"),
        ("a.csv", "source,target,id\nSave,Guardar\n", r"a.csv line 2: 2 columns, expected 3"),
        ("a.csv", '"Save,Guardar\n', r"a.csv line \d: unexpected end of data"),
        ("a.jsonl", '{"source": "Save"}\n', r'a.jsonl line 1: expected an object {"source": "...", "target": "..."}'),
        ("a.jsonl", '{"source": "Save", "target": 3}\n', r"a.jsonl line 1: expected an object"),
        ("a.jsonl", '{"source": "a", "target": "b"}\nnot json\n', r"a.jsonl line 2 is not JSON \("),
        ("a.xlsx", "", r"a.xlsx: unknown kind of corpus '.xlsx'; expected .tsv, .csv, .jsonl, .po or a folder"),
    ],
)
def test_a_table_that_does_not_fit_is_named_with_its_line(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        read_table(write(tmp_path / name, text))


def test_another_encoding_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "a.tsv").write_bytes("a\tpágina\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a.tsv is not UTF-8 \(.* at byte 3\); convert it"):
        read_table(tmp_path / "a.tsv")
    with pytest.raises(InputError, match=r"b.tsv cannot be read \(No such file or directory\)"):
        read_table(tmp_path / "b.tsv")

"""Corpora: the same everywhere, recorded; and clear lines for what cannot be had."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from kslottery_fast.base.cache import CACHE_VARIABLE
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.pairs import Pair
from kslottery_fast.lab.data import corpora, fetch
from kslottery_fast.lab.data.corpora import Corpus, load_corpus

SMALL = {"train": 20, "validation": 5, "test": 5}


def numbered(count: int) -> list[Pair]:
    return [Pair(f"source {i}", f"target {i}") for i in range(count)]


def write_tsv(path: Path, pairs: list[Pair]) -> Path:
    path.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in pairs), encoding="utf-8")
    return path


@pytest.fixture
def tsv(tmp_path) -> Path:
    return write_tsv(tmp_path / "pairs.tsv", numbered(40))


def test_a_corpus_has_the_sizes_asked_for_and_records_how_it_was_made(tsv):
    corpus = load_corpus(str(tsv), **SMALL, seed=7)
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (20, 5, 5)
    assert (corpus.source_language.name, corpus.target_language.code) == ("English", "es")
    assert corpus.provenance == {
        "corpus": str(tsv),
        "origin": [{"path": str(tsv)}],
        "seed": 7,
        "max_characters": 200,
        "min_words": 1,
        "sizes": SMALL,
        "counts": {"read": 40, "usable": 40, "left_out": {}},
    }
    assert len({*corpus.train, *corpus.validation, *corpus.test}) == 30


def test_the_same_arguments_give_the_same_corpus_and_others_do_not(tsv):
    digest = load_corpus(str(tsv), **SMALL).digest
    assert load_corpus(str(tsv), **SMALL).digest == digest
    others = ({"seed": 1}, {"target": "ca"}, {"source": "fr"}, {"train": 21}, {"target": "es=Castilian"})
    digests = {load_corpus(str(tsv), **(SMALL | other)).digest for other in others}
    assert len(digests | {digest}) == len(others) + 1


def test_the_digest_depends_on_texts_and_splits_and_not_on_where_they_were_read(tsv):
    corpus = load_corpus(str(tsv), **SMALL)
    languages = (corpus.source_language, corpus.target_language)
    moved = tuple(Pair(pair.source, pair.target, "elsewhere") for pair in corpus.train)
    assert Corpus(moved, corpus.validation, corpus.test, *languages).digest == corpus.digest
    assert Corpus(corpus.train, corpus.test, corpus.validation, *languages).digest != corpus.digest
    changed = (Pair(corpus.train[0].source, "x"), *corpus.train[1:])
    assert Corpus(changed, corpus.validation, corpus.test, *languages).digest != corpus.digest


def test_the_digest_of_this_corpus_is_this_on_every_machine(tsv):
    assert load_corpus(str(tsv), **SMALL).digest == "e2edefc21def4a936e7ac92fca6a6f11bcc82125698e4e81aed2dd3ada55d042"


def test_too_few_pairs_are_refused_with_all_counts(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [*numbered(3), Pair("same", "same"), Pair("source 1", "again")])
    with pytest.raises(InputError) as caught:
        load_corpus(str(path))
    assert str(caught.value) == (
        f"corpus '{path}' has 3 usable pairs English -> Spanish, but 1,492 were asked for (train 1,300, validation "
        "96, test 96); ask for fewer, or give another corpus. "
        "Entries read: 5; left out: 1 duplicate source, 1 identical"
    )


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has 0 usable pairs .* Entries read: 0; left out: none"):
        load_corpus(str(write_tsv(tmp_path / "a.tsv", [])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"spec": "catalog"},
            r"unknown corpus 'catalog'; did you mean catalogues\? Give a named corpus \(catalogues, cat",
        ),
        ({"target": "klingonish"}, "unknown language 'klingonish'"),
        ({"target": "English"}, "source and target language are both English; give two languages"),
        ({"source": "de"}, "the catalogues translate from English, not from German; give a corpus file"),
        ({"train": 0}, "train is 0; expected an integer of at least 1"),
        ({"test": 1.5}, "test is 1.5; expected an integer of at least 1"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
        ({"max_characters": 0}, "max_characters is 0; expected an integer of at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_fetched(arguments, message, monkeypatch):
    monkeypatch.setattr(corpora, "fetch_wheel", None)
    with pytest.raises(InputError, match=message):
        load_corpus(**arguments)


def catalogue(count: int, prefix: str) -> str:
    entries = "".join(f'msgid "{prefix} source {i}"\nmsgstr "{prefix} target {i}"\n\n' for i in range(count))
    return 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n\n' + entries


def test_named_catalogues_are_read_out_of_cached_wheels_with_their_licences(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "wheels").mkdir()
    for name in corpora.CATALOGUES["catalogues"]:
        path = tmp_path / "wheels" / f"{name}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}/locale/es/LC_MESSAGES/django.po", catalogue(20, name))
            archive.writestr(f"{name}/locale/fr/LC_MESSAGES/django.po", catalogue(20, "français"))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        wheel = fetch.Wheel(name, "1.0", path.name, path.stat().st_size, "BSD-3-Clause", sha256)
        monkeypatch.setitem(fetch.WHEELS, name, wheel)
    corpus = load_corpus(**SMALL)
    pairs = (*corpus.train, *corpus.validation, *corpus.test)
    assert {pair.source.split()[0] for pair in pairs} == {"Django", "wagtail"}
    assert corpus.provenance["counts"] == {"read": 40, "usable": 40, "left_out": {}}
    assert [origin["name"] for origin in corpus.provenance["origin"]] == ["Django", "wagtail"]
    assert corpus.licences == ("Django 1.0: BSD-3-Clause", "wagtail 1.0: BSD-3-Clause")


def test_a_folder_of_catalogues_and_a_single_one_give_the_same_splits(tmp_path):
    (tmp_path / "locale").mkdir()
    (tmp_path / "locale" / "es.po").write_text(catalogue(40, "x"), encoding="utf-8")
    folder = load_corpus(str(tmp_path / "locale"), **SMALL)
    assert folder.digest == load_corpus(str(tmp_path / "locale" / "es.po"), **SMALL).digest


def test_every_wheel_of_a_named_corpus_is_pinned():
    for wheels in corpora.CATALOGUES.values():
        assert set(wheels) <= set(fetch.WHEELS)


@pytest.mark.parametrize("value", [None, 5, 2.5, ["a"], []])
def test_arguments_of_a_wrong_type_are_refused_by_name(value):
    for name in ("spec", "target", "source"):
        with pytest.raises(TypeError, match=f"^{name} is "):
            load_corpus(**{name: value})
    for name in ("train", "seed", "max_characters"):
        if value != 5:
            with pytest.raises(InputError, match=f"^{name} is "):
                load_corpus(**{name: value})

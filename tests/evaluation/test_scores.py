"""BLEU and chrF++ equal sacrebleu's own; SentencePiece models are checked before use."""

from __future__ import annotations

import builtins
import logging

import pytest
import sacrebleu
import sentencepiece
from sacrebleu.tokenizers import tokenizer_spm

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.intervals import Interval
from kslottery_fast.evaluation.scores import bleu_metric, chrf_metric, corpus_score

HYPOTHESES = [
    "la casa es grande",
    "guardar un archivo .",
    "",
    "eliminar todas las entradas del sitio",
    "hola mundo",
] * 6
REFERENCES = [
    "la casa es muy grande",
    "guardar el archivo.",
    "sí",
    "eliminar todas las entradas",
    "hola, mundo",
] * 6


def test_the_values_are_those_of_sacrebleu():
    assert (
        corpus_score(bleu_metric(), HYPOTHESES, REFERENCES).value
        == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    )
    chrf = sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert corpus_score(chrf_metric(), HYPOTHESES, REFERENCES).value == chrf


def test_the_interval_agrees_with_the_bootstrap_of_sacrebleu():
    for metric in (bleu_metric(), chrf_metric()):
        interval = corpus_score(metric, HYPOTHESES, REFERENCES, n_bootstrap=4000)
        theirs = metric.corpus_score(HYPOTHESES, [REFERENCES], n_bootstrap=4000)
        assert (interval.high - interval.low) / 2 == pytest.approx(theirs._ci, rel=0.07)
        assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("make", [bleu_metric, chrf_metric])
def test_perfect_output_scores_100_without_width(make):
    interval = corpus_score(make(), ["uno dos tres cuatro cinco"] * 4, ["uno dos tres cuatro cinco"] * 4)
    assert interval.value == pytest.approx(100)
    assert interval.low == interval.high == interval.value


@pytest.mark.parametrize("make", [bleu_metric, chrf_metric])
def test_one_sentence_and_empty_output_do_not_crash(make):
    assert corpus_score(make(), [""], ["hola"]) == Interval(0.0, 0.0, 0.0)
    one = corpus_score(make(), ["la casa es muy grande"], ["la casa es muy bella"])
    assert 0 < one.value == one.low == one.high


def test_the_seed_decides_the_interval():
    first = corpus_score(bleu_metric(), HYPOTHESES, REFERENCES, n_bootstrap=50, seed=1)
    assert first == corpus_score(bleu_metric(), HYPOTHESES, REFERENCES, n_bootstrap=50, seed=1)
    assert first != corpus_score(bleu_metric(), HYPOTHESES, REFERENCES, n_bootstrap=50, seed=2)


def test_sacrebleu_is_not_made_to_warn(caplog):
    with caplog.at_level(logging.WARNING, logger="sacrebleu"):
        corpus_score(bleu_metric(), ["hola ."] * 200, ["hola."] * 200, n_bootstrap=1)
    assert not caplog.records


def test_counts_that_contradict_the_public_score_stop_the_run(monkeypatch):
    metric = bleu_metric()
    monkeypatch.setattr(metric, "corpus_score", lambda h, r: type("S", (), {"score": 12.5})())
    monkeypatch.setattr(metric, "get_signature", lambda: "nrefs:1")
    with pytest.raises(
        RuntimeError, match=r"sacrebleu's counts give .*, but its score is 12.5: this version of sacrebleu is not"
    ):
        corpus_score(metric, HYPOTHESES, REFERENCES)


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(InputError, match="bleu_tokenizer is 'ja-mecab': expected '13a', 'intl'"):
        bleu_metric("ja-mecab")


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The model folder of sacrebleu, and no way to download: a test that reaches for the network fails."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))

    def refuse(url, _path):
        raise AssertionError(f"tried to download {url}")

    monkeypatch.setattr(tokenizer_spm, "download_file", refuse)
    return folder


@pytest.fixture
def spm(tmp_path):
    """Bytes of a small but real SentencePiece model."""
    text = tmp_path / "text"
    text.write_text(
        "\n".join(f"la casa número {i} es grande y el archivo está aquí" for i in range(200)),
        encoding="utf-8",
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=50, minloglevel=2
    )
    return (tmp_path / "m.model").read_bytes()


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [("flores101", "sacrebleu_tokenizer_spm.model"), ("flores200", "flores200sacrebleuspm")],
)
def test_spbleu_works_where_the_model_is_at_hand(models, spm, tokenizer, name):
    (models / name).write_bytes(spm)
    metric = bleu_metric(tokenizer)
    assert corpus_score(metric, REFERENCES, REFERENCES).value == pytest.approx(100)
    assert f"tok:{tokenizer}" in str(metric.get_signature())


def test_a_missing_model_is_named_with_where_to_get_it(models):
    with pytest.raises(InputError, match=r"needs the SentencePiece model .*flores200sacrebleuspm, .* get it from http"):
        bleu_metric("flores200")


def test_truncated_models_are_refused_wherever_they_were_cut(models, spm):
    """A cut between two pieces gives a file that sentencepiece loads, with fewer pieces, without a word."""
    path = models / "flores200sacrebleuspm"
    first = 2 + spm[1]  # the first piece: tag, length, bytes
    second = first + 2 + spm[first + 1]
    for cut in (0, 1, first, second, second + 1, len(spm) // 2, len(spm) - 1):
        path.write_bytes(spm[:cut])
        with pytest.raises(InputError, match="is truncated or damaged: delete it, get it from"):
            bleu_metric("flores200")


def test_a_foreign_file_is_refused(models):
    (models / "flores200sacrebleuspm").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="is truncated or damaged"):
        bleu_metric("flores200")
    (models / "flores200sacrebleuspm").write_bytes(b"\x0a\x01\xff\x12\x00\x1a\x00")  # the right fields, wrong inside
    with pytest.raises(InputError, match="sentencepiece cannot read"):
        bleu_metric("flores200")


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "sentencepiece":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="needs the package sentencepiece: pip install sentencepiece"):
        bleu_metric("flores101")

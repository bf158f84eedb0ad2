"""BLEU and chrF++ of a corpus, by sacrebleu, with bootstrap intervals and citable signatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_lab

from .intervals import Interval, bootstrap_interval

if TYPE_CHECKING:  # sacrebleu belongs to the extra `lab`: it is imported where a score is computed
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

BLEU_TOKENIZERS = ("13a", "intl", "char", "zh", "none", "flores101", "flores200")
"""sacrebleu's tokenizers that need nothing more, and the two of spBLEU, which need a SentencePiece model."""


def bleu_metric(tokenizer: str = "13a") -> BLEU:
    """A sacrebleu BLEU metric; for spBLEU only after its model file was found complete.

    sacrebleu itself would download a missing model in the constructor, and would never fetch a truncated one
    again.

    Raises
    ------
    InputError : an unknown tokenizer; sacrebleu is missing; for "flores101" and "flores200" also when the package
        sentencepiece or an intact model file is missing.
    """
    if tokenizer not in BLEU_TOKENIZERS:
        raise InputError(f"bleu_tokenizer is {tokenizer!r}; expected one of {', '.join(BLEU_TOKENIZERS)}")
    _require_sacrebleu()
    from sacrebleu.metrics.bleu import BLEU

    if tokenizer.startswith("flores"):
        _check_sentencepiece_model(tokenizer)
    # force: the outputs are detokenized by construction, so no warning about spaces before a final period.
    return BLEU(tokenize=tokenizer, force=True)


def chrf_metric() -> CHRF:
    """chrF++, that is chrF with word 1- and 2-grams. Without sacrebleu an InputError."""
    _require_sacrebleu()
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=2)


def corpus_score(
    metric: BLEU | CHRF,
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """Corpus score (0 to 100) with a 95 % bootstrap interval over sentences; one reference per hypothesis.

    The value is that of ``metric.corpus_score``. sacrebleu's own bootstrap gives only half the width of an
    interval, symmetric around the mean of the resamples, and takes its seed from the environment; so the
    per-sentence counts are resampled here.
    """
    statistics, score = sentence_statistics(metric, hypotheses, references)
    return bootstrap_interval(statistics, score, n_bootstrap=n_bootstrap, seed=seed)


def sentence_statistics(
    metric: BLEU | CHRF, hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[np.ndarray[Any, Any], Callable[[np.ndarray[Any, Any]], float]]:
    """What each sentence contributes to a corpus score, int64 [n, s], and the score of a sum of such rows.

    They come from two methods that sacrebleu marks as internal (its own paired tests are built on them); should they
    change, the check against the public score stops with an error instead of a wrong number.
    """
    public = metric.corpus_score(list(hypotheses), [list(references)]).score
    statistics = np.array(metric._extract_corpus_statistics(list(hypotheses), [list(references)]), dtype=np.int64)

    def score(sums: np.ndarray[Any, Any]) -> float:
        return float(metric._compute_score_from_stats(sums.tolist()).score)

    value = score(statistics.sum(axis=0))
    if value != public:
        raise RuntimeError(
            f"{metric.get_signature()}: sacrebleu's counts give {value}, its score is {public}; "
            "this sacrebleu is newer than kslottery-fast knows, install the version in the constraints file"
        )
    return statistics, score


def _require_sacrebleu() -> None:
    require_lab("BLEU and chrF++", "sacrebleu")


def _check_sentencepiece_model(tokenizer: str) -> None:
    from sacrebleu.tokenizers import tokenizer_spm

    url = tokenizer_spm.SPM_MODELS[tokenizer]["url"]
    path = Path(tokenizer_spm.SACREBLEU_DIR, "models", Path(url).name)
    remedy = f"get it from {url} and save it as {path}, or choose bleu_tokenizer='13a'"
    try:
        import sentencepiece
    except ImportError:
        raise InputError(
            f"bleu_tokenizer {tokenizer!r} needs the package sentencepiece: pip install sentencepiece"
        ) from None
    if not path.is_file():
        raise InputError(
            f"bleu_tokenizer {tokenizer!r} needs the SentencePiece model {path}, which is not there; {remedy}"
        )
    if not _is_complete_model(path.read_bytes()):
        raise InputError(f"the SentencePiece model {path} is truncated or damaged; delete it, {remedy}")
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(f"sentencepiece cannot read {path} ({error}); delete it, {remedy}") from None


def _is_complete_model(data: bytes) -> bool:
    """Whether the protobuf message ends where its last field ends and has the fields after the pieces.

    A file cut between two pieces is still a valid message that sentencepiece loads, with a smaller
    vocabulary. The fields stand in order: 1 the pieces, 2 the trainer's settings, 3 the normalizer.
    """
    fields, position = set(), 0
    while position < len(data):
        tag, position = data[position], position + 1
        length = shift = 0
        while position < len(data):
            byte, position = data[position], position + 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        position += length
        if tag & 0x87 != 2:  # every top-level field is length-delimited and has a number below 16
            return False
        fields.add(tag >> 3)
    return position == len(data) and {1, 2, 3} <= fields

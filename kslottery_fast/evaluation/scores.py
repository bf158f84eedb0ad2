"""BLEU and chrF++ of a corpus by sacrebleu, with bootstrap intervals and signatures to cite."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from kslottery_fast.base.arguments import check_choice, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_lab
from kslottery_fast.base.options import BleuTokenizer

from .checks import check_bootstrap, check_list, check_same_length
from .intervals import Interval, bootstrap_interval

BLEU_TOKENIZERS: tuple[BleuTokenizer, ...] = get_args(BleuTokenizer)


class Metric(Protocol):
    """A metric of sacrebleu: BLEU or CHRF."""

    def corpus_score(self, hypotheses: Sequence[str], references: Any, n_bootstrap: int = 1) -> Any:
        """Return an object whose ``score`` is the score of the corpus."""

    def get_signature(self) -> Any:
        """Return what to cite."""


def bleu_metric(tokenizer: BleuTokenizer = "13a") -> Metric:
    """Return a sacrebleu BLEU metric. For spBLEU, its model file is checked first.

    By itself, sacrebleu would download a missing model in the constructor, and would never replace a truncated one.

    Parameters
    ----------
    tokenizer : {"13a", "intl", "char", "zh", "none", "flores101", "flores200"}
        Tokenizer of sacrebleu. The last two give spBLEU.

    Raises
    ------
    InputError
        The tokenizer is unknown or sacrebleu is missing. For "flores101" and "flores200", also: the package
        sentencepiece or an intact model file is missing.

    Examples
    --------
    >>> bleu_metric("intl").corpus_score(["la casa es roja"], [["la casa es roja"]]).score
    100.00000000000004
    """
    check_choice(tokenizer, BLEU_TOKENIZERS, "bleu_tokenizer")
    _require_sacrebleu()
    from sacrebleu.metrics.bleu import BLEU

    if tokenizer.startswith("flores"):
        _check_sentencepiece_model(tokenizer)
    # force: the outputs are not tokenized, so sacrebleu need not warn about spaces before a final period.
    return BLEU(tokenize=tokenizer, force=True)


def chrf_metric() -> Metric:
    """Return a sacrebleu chrF++ metric, which is chrF with word 1-grams and 2-grams.

    Raises
    ------
    InputError
        sacrebleu is missing.

    Examples
    --------
    >>> chrf_metric().corpus_score(["el mar azul"], [["el mar azul"]]).score
    100.0
    """
    _require_sacrebleu()
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=2)


def corpus_score(
    metric: Metric,
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the score of a corpus, 0 to 100, with a 95% bootstrap interval over sentences.

    The value is that of ``metric.corpus_score``. The interval is not sacrebleu's, which is only half the width of an
    interval, symmetric around the mean of the resamples, and its seed comes from the environment. Here the counts of
    the sentences are resampled instead.

    Parameters
    ----------
    metric : Metric
        What :func:`bleu_metric` or :func:`chrf_metric` returns.
    hypotheses : sequence of str
        What the model wrote, one text for each sentence, at least one.
    references : sequence of str
        One reference for each hypothesis.
    n_bootstrap, seed : int
        Number of resamples and seed of the bootstrap.

    Raises
    ------
    InputError
        There are no texts, the two lists differ in length, or a number is out of range.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> score = corpus_score(chrf_metric(), ["la casa", "el mar"], ["la casa", "el mar"])
    >>> f"{score:.1f}"
    '100.0 (100.0 to 100.0)'
    """
    check_bootstrap(n_bootstrap, seed)
    statistics, score = sentence_statistics(metric, hypotheses, references)
    return bootstrap_interval(statistics, score, n_bootstrap=n_bootstrap, seed=seed)


def sentence_statistics(
    metric: Metric, hypotheses: Sequence[str], references: Sequence[str]
) -> tuple[NDArray[np.int64], Callable[[NDArray[Any]], float]]:
    """Return what each sentence contributes to a corpus score, and the score as a function of sums of that.

    Both come from methods that sacrebleu marks as internal, although its own paired tests use them. They are checked
    against the public score. If they should change, an error stops the evaluation, and no wrong number comes out.

    Parameters
    ----------
    metric : Metric
        What :func:`bleu_metric` or :func:`chrf_metric` returns.
    hypotheses, references : sequence of str
        Texts, one of each for each sentence.

    Returns
    -------
    statistics : int64 array [n, s]
        The counts of each sentence.
    score : callable
        Computes the score from [s] sums.

    Raises
    ------
    InputError
        There are no texts, or the two lists differ in length.
    TypeError
        An argument has the wrong type.
    RuntimeError
        The counts do not give the public score: this sacrebleu is not supported.

    Examples
    --------
    >>> statistics, score = sentence_statistics(bleu_metric(), ["la casa es roja"] * 3, ["la casa es roja"] * 3)
    >>> len(statistics), round(score(statistics.sum(axis=0)))
    (3, 100)
    """
    if isinstance(metric, type) or not hasattr(metric, "_compute_score_from_stats"):
        raise TypeError(f"metric is {shown(metric)}: expected a metric, e.g. bleu_metric()")
    told, wanted = check_list(hypotheses, str, "hypotheses"), check_list(references, str, "references")
    check_same_length(told, wanted, ("hypotheses", "references"))
    inner: Any = metric
    public = inner.corpus_score(told, [wanted]).score
    statistics = np.array(inner._extract_corpus_statistics(told, [wanted]), dtype=np.int64)

    def score(sums: NDArray[Any]) -> float:
        return float(inner._compute_score_from_stats(sums.tolist()).score)

    value = score(statistics.sum(axis=0))
    if value != public:
        raise RuntimeError(
            f"{inner.get_signature()}: sacrebleu's counts give {value}, but its score is {public}: "
            "this version of sacrebleu is not supported; install the version in the constraints file"
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
            f"bleu_tokenizer {tokenizer!r} needs the SentencePiece model {path}, which is not there: {remedy}"
        )
    if not _is_complete_model(path.read_bytes()):
        raise InputError(f"the SentencePiece model {path} is truncated or damaged: delete it, {remedy}")
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(f"sentencepiece cannot read {path} ({error}): delete it, {remedy}") from None


def _is_complete_model(data: bytes) -> bool:
    """Tell whether the protobuf message ends where its last field ends, and has the fields after the pieces.

    A file that was cut between two pieces is still a valid message. sentencepiece loads it, with a smaller vocabulary.
    The fields come in this order: 1 the pieces, 2 the trainer's settings, 3 the normalizer.
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

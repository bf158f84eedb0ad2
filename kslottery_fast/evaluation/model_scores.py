"""Replicates of the scores of one model, over sentences and training seeds."""

from collections.abc import Callable, Sequence
from typing import Any

from kslottery_fast.base.arguments import check_choice, shown

from .checks import check_bootstrap, check_list, check_same_length
from .evaluate import SCORES, Evaluation, first_line, one_line
from .likelihood import TargetNll
from .replicates import Replicates, replicates_over_seeds
from .scores import BLEU_TOKENIZERS, BleuTokenizer, bleu_metric, chrf_metric, sentence_statistics


def score_replicates(
    evaluations: Sequence[Evaluation],
    references: Sequence[str],
    *,
    bleu_tokenizer: BleuTokenizer = "13a",
    n_bootstrap: int = 1000,
    seed: int = 0,
    metrics: Sequence[str] = SCORES,
) -> dict[str, Replicates]:
    """Return replicates of the scores of one model.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        One for each training seed, on the same sentences.
    references : sequence of str
        The targets of the sentences.
    bleu_tokenizer : {"13a", "intl", "char", "zh", "none", "flores101", "flores200"}
        Tokenizer of sacrebleu.
    n_bootstrap, seed : int
        As for :func:`~kslottery_fast.evaluation.replicates.replicates_over_seeds`. Use the same values for all models
        that are compared.
    metrics : sequence of str
        Which of ``SCORES`` to compute.

    Returns
    -------
    dict
        Replicates by metric.

    Raises
    ------
    InputError
        There is no evaluation, the references differ from the outputs in number, or another argument is out of range.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast import Example, evaluate
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> evaluation = evaluate(*alphabet_model(), [Example("w", "xyz"), Example("x", "yz")])
    >>> score_replicates([evaluation], ["xyz", "yz"], metrics=["ended", "mean_chars"], n_bootstrap=100)
    {'ended': Replicates(1 (1 to 1), 100 resamples), 'mean_chars': Replicates(2.5 (2 to 3), 100 resamples)}
    """
    evaluations = check_list(evaluations, Evaluation, "evaluations")
    references = check_list(references, str, "references")
    for one in evaluations:
        check_same_length(references, one.outputs, ("references", "an evaluation's outputs"))
    check_choice(bleu_tokenizer, BLEU_TOKENIZERS, "bleu_tokenizer")
    check_bootstrap(n_bootstrap, seed)
    for metric in check_list(metrics, str, "metrics", empty=True):
        check_choice(metric, SCORES, "metrics")
    expected = [one_line(reference) for reference in references]
    of_output: dict[str, Callable[[Any], float]] = {
        "ended": lambda output: float(output.ended),
        "mean_chars": lambda output: float(len(output.text.strip())),
    }

    def tables(metric: str) -> tuple[list[Any], Callable[[Any], float]]:
        """Return what each sentence contributes, seed by seed, and the score as a function of sums."""
        if metric == "nll":
            return [_nll_table(one) for one in evaluations], _ratio
        if metric in of_output:
            return [[[of_output[metric](output), 1.0] for output in one.outputs] for one in evaluations], _ratio
        maker = bleu_metric(bleu_tokenizer) if metric.startswith("bleu") else chrf_metric()
        cut = one_line if metric.endswith("raw") else first_line
        found = [sentence_statistics(maker, [cut(o.text) for o in one.outputs], expected) for one in evaluations]
        return [statistics for statistics, _ in found], found[0][1]

    return {metric: replicates_over_seeds(*tables(metric), n_bootstrap=n_bootstrap, seed=seed) for metric in metrics}


def nll_replicates(results: Sequence[Evaluation | TargetNll], *, n_bootstrap: int = 1000, seed: int = 0) -> Replicates:
    """Return replicates of the NLL per target token.

    Parameters
    ----------
    results : sequence of Evaluation or TargetNll
        One for each training seed, on the same sentences.
    n_bootstrap, seed : int
        As for :func:`score_replicates`.

    Raises
    ------
    InputError
        There is no result, or a number is out of range.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.intervals import Interval
    >>> result = TargetNll(Interval(2.0, 2.0, 2.0), [6.0, 4.0], [3, 2])
    >>> nll_replicates([result], n_bootstrap=100)
    Replicates(2 (2 to 2), 100 resamples)
    """
    kind: Any = (Evaluation, TargetNll)
    found = check_list(results, object, "results", " of evaluate or nll")
    for i, one in enumerate(found):
        if not isinstance(one, kind):
            raise TypeError(f"results[{i}] is {shown(one)}: expected a result of evaluate or nll")
    return replicates_over_seeds([_nll_table(one) for one in results], _ratio, n_bootstrap=n_bootstrap, seed=seed)


def _nll_table(result: Evaluation | TargetNll) -> list[tuple[float, int]]:
    return list(zip(result.sentence_nll, result.sentence_tokens, strict=True))


def _ratio(sums: Any) -> float:
    return float(sums[0] / sums[1])

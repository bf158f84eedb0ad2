r"""Scores of a model on held-out pairs: NLL, BLEU, chrF++, how often it stops by itself, and how much it writes.

BLEU and chrF++ are computed twice, on the raw text and on its first line. Much of a raw gain can come from a model that
learned to stop: in a replication of the KS-Lottery paper that was 94% of the published gain.

- *raw* is the whole continuation, with every run of whitespace, line breaks included, as a single space;
- *first line* is ``text.strip().split("\n")[0]``, which ignores whatever follows the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn
from typing_extensions import Self

from kslottery_fast.base.arguments import check_integer, check_model, check_tokenizer
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.tokenizer import Tokenizer

from .checks import check_bootstrap, check_instance, check_list, check_progress
from .encoding import Example, collate, encode
from .generation import GeneratedText, generate
from .intervals import Interval, bootstrap_interval, clopper_pearson
from .likelihood import TargetNll, nll
from .scores import BleuTokenizer, Metric, bleu_metric, chrf_metric, corpus_score
from .words import counted

__all__ = [
    "Evaluation",
    "Example",
    "GeneratedText",
    "Interval",
    "TargetNll",
    "collate",
    "encode",
    "evaluate",
    "first_line",
    "generate",
    "nll",
    "one_line",
]

SCORES = ("nll", "bleu_raw", "bleu_first_line", "chrf_raw", "chrf_first_line", "ended", "mean_chars")
"""The fields of an Evaluation that are an Interval, in the order of a table."""

_ROWS = {
    "nll": ("NLL per target token", ".3f"),
    "bleu_raw": ("BLEU, raw", ".1f"),
    "bleu_first_line": ("BLEU, first line", ".1f"),
    "chrf_raw": ("chrF++, raw", ".1f"),
    "chrf_first_line": ("chrF++, first line", ".1f"),
    "ended": ("Ended by the model", ".1%"),
    "mean_chars": ("Characters", ".1f"),
}  # what summary() calls each score, and how it formats it


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of one model on one test set. Every interval has a coverage of 95% over sentences.

    Attributes
    ----------
    nll : Interval
        Nats per target token, with the end-of-text token.
    bleu_raw, bleu_first_line : Interval
        BLEU, 0 to 100.
    chrf_raw, chrf_first_line : Interval
        chrF++, 0 to 100.
    ended : Interval
        Share of continuations that the model itself ended. This interval is Clopper and Pearson's; all others are
        bootstrap intervals.
    mean_chars : Interval
        Characters of a stripped continuation.
    outputs : list of GeneratedText
        One continuation for each example, in order.
    sentence_nll : list of float
        NLL in nats of each example.
    sentence_tokens : list of int
        Number of target tokens of each example.
    signatures : dict of str
        What to cite for "bleu", "chrf" and "bootstrap".

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> examples = [Example("a", "bc"), Example("s", "tuvwxyz")]
    >>> evaluation = evaluate(*alphabet_model(), examples, n_bootstrap=100, bleu_tokenizer="char")
    >>> print(evaluation.summary())
    2 sentences, value (95% interval)
    NLL per target token    0.608 (0.127 to 1.891)
    BLEU, raw              ...
    BLEU, first line       ...
    chrF++, raw            ...
    chrF++, first line     ...
    Ended by the model     100.0% (15.8% to 100.0%)
    Characters               16.0 (7.0 to 25.0)
    >>> evaluation.scores()["mean_chars"]
    {'value': 16.0, 'low': 7.0, 'high': 25.0}
    >>> Evaluation.from_dict(evaluation.to_dict()) == evaluation
    True
    """

    nll: Interval
    bleu_raw: Interval
    bleu_first_line: Interval
    chrf_raw: Interval
    chrf_first_line: Interval
    ended: Interval
    mean_chars: Interval
    outputs: list[GeneratedText]
    sentence_nll: list[float]
    sentence_tokens: list[int]
    signatures: dict[str, str]

    def __repr__(self) -> str:
        return (
            f"Evaluation({counted(len(self.outputs), 'sentence')}, nll={self.nll:.3f}, "
            f"bleu_first_line={self.bleu_first_line:.1f}, ended={self.ended.value:.1%})"
        )

    def summary(self) -> str:
        """Return the seven scores with their intervals as a table of eight lines."""
        lines = [f"{counted(len(self.outputs), 'sentence')}, value (95% interval)"]
        for name, (label, spec) in _ROWS.items():
            score: Interval = getattr(self, name)
            value, interval = f"{score:{spec}}".split(" ", 1)
            lines.append(f"{label:<22}{value:>7} {interval}")
        return "\n".join(lines)

    def scores(self) -> dict[str, dict[str, float]]:
        """Return the seven intervals, each as ``{"value", "low", "high"}``."""
        return {name: getattr(self, name).to_dict() for name in SCORES}

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the evaluation that :meth:`to_dict` described.

        Raises
        ------
        InputError
            A field is missing, unknown or malformed.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            raise InputError(f"data is not an evaluation: expected the fields {', '.join(sorted(names))}")
        try:
            evaluation = cls(
                **{name: Interval.from_dict(data[name]) for name in SCORES},
                outputs=[GeneratedText(**output) for output in data["outputs"]],
                sentence_nll=[float(x) for x in data["sentence_nll"]],
                sentence_tokens=[int(x) for x in data["sentence_tokens"]],
                signatures=dict(data["signatures"]),
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"data is not an evaluation: {error}") from None
        if not len(evaluation.outputs) == len(evaluation.sentence_nll) == len(evaluation.sentence_tokens):
            raise InputError("data is not an evaluation: outputs, sentence_nll and sentence_tokens differ in length")
        return evaluation


def one_line(text: str) -> str:
    r"""Return a text on one line: every run of whitespace becomes a single space.

    >>> one_line("Hola,\n mundo")
    'Hola, mundo'
    """
    check_instance(text, str, "text")
    return " ".join(text.split())


def first_line(text: str) -> str:
    r"""Return the first line that is not blank.

    >>> first_line(" Hola\nEnglish: Bye")
    'Hola'
    """
    check_instance(text, str, "text")
    return one_line(text.strip().split("\n")[0])


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
    bleu_tokenizer: BleuTokenizer = "13a",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a model on held-out pairs.

    Parameters
    ----------
    model : torch.nn.Module
        A decoder-only transformers model, also offloaded by accelerate. Its modules return to the
        modes that they came in.
    tokenizer : transformers tokenizer
        The model's own.
    examples : sequence of Example
        Prompts and targets, at least one. The target, on one line, is the reference of both the raw and the first-line
        scores.
    max_new_tokens : int
        Length of the greedy continuation, see :func:`~kslottery_fast.evaluation.generation.generate`.
    batch_size : int
        Sentences in a batch.
    n_bootstrap, seed : int
        Number of resamples and seed of the bootstrap over sentences. They are the same for every score and model, so
        models that are compared on the same examples are resampled in pairs.
    bleu_tokenizer : {"13a", "intl", "char", "zh", "none", "flores101", "flores200"}
        Tokenizer of sacrebleu. "flores101" and "flores200" give spBLEU, if their SentencePiece model is on this
        machine.
    progress : callable, optional
        Called with (done, 2 * sentences). Every sentence counts once for its NLL and once for its continuation.

    Returns
    -------
    Evaluation
        The scores with their intervals, and what the model wrote.

    Raises
    ------
    InputError
        There are no examples, an argument is out of range, sacrebleu is missing, or :func:`nll`, :func:`generate` or
        :func:`~kslottery_fast.evaluation.scores.bleu_metric` refuses its arguments.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> evaluation = evaluate(model, tokenizer, [Example("s", "tuvwxyz"), Example("x", "yz")], bleu_tokenizer="char")
    >>> evaluation
    Evaluation(2 sentences, nll=0.127 (0.127 to 0.127), bleu_first_line=100.0 (0.0 to 100.0), ended=100.0%)
    >>> evaluation.outputs[1]
    GeneratedText(text='yz', ended=True, tokens=3)
    """
    check_model(model)
    check_tokenizer(tokenizer)
    examples = check_list(examples, Example, "examples", ", e.g. Example('Spanish:', ' casa')")
    check_integer(max_new_tokens, "max_new_tokens", 1)
    check_integer(batch_size, "batch_size", 1)
    check_bootstrap(n_bootstrap, seed)
    check_progress(progress)
    bleu, chrf = bleu_metric(bleu_tokenizer), chrf_metric()
    n = len(examples)

    def shifted(by: int) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, _total: progress(by + done, 2 * n)

    likelihood = nll(
        model,
        tokenizer,
        examples,
        batch_size=batch_size,
        n_bootstrap=n_bootstrap,
        seed=seed,
        progress=shifted(0),
    )
    outputs = generate(
        model,
        tokenizer,
        [example.prompt for example in examples],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=shifted(n),
    )
    references = [one_line(example.target) for example in examples]
    raw = [one_line(output.text) for output in outputs]
    first = [first_line(output.text) for output in outputs]
    chars = [[float(len(output.text.strip())), 1.0] for output in outputs]

    def score(metric: Metric, hypotheses: list[str]) -> Interval:
        return corpus_score(metric, hypotheses, references, n_bootstrap=n_bootstrap, seed=seed)

    return Evaluation(
        nll=likelihood.interval,
        bleu_raw=score(bleu, raw),
        bleu_first_line=score(bleu, first),
        chrf_raw=score(chrf, raw),
        chrf_first_line=score(chrf, first),
        ended=clopper_pearson(sum(output.ended for output in outputs), n),
        mean_chars=bootstrap_interval(chars, lambda s: s[0] / s[1], n_bootstrap=n_bootstrap, seed=seed),
        outputs=outputs,
        sentence_nll=likelihood.sentence_nll,
        sentence_tokens=likelihood.sentence_tokens,
        signatures={
            "bleu": str(bleu.get_signature()),
            "chrf": str(chrf.get_signature()),
            "bootstrap": f"percentile|level:0.95|over:sentences|resamples:{n_bootstrap}|seed:{seed}",
        },
    )

r"""What a model does on held-out pairs: NLL, BLEU and chrF++ raw and on the first line, stopping, length.

Raw and first-line scores stand side by side because most of a raw gain can be that a model learned to stop: a
replication of the KS-Lottery paper found 94 % of the published gain to be just that.

- *raw* is the whole continuation, its runs of whitespace (line breaks too) joined to single spaces;
- *first line* is ``text.strip().split("\n")[0]``: what is left when whatever follows the answer is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import nn

from kslottery_fast.base.errors import InputError

from .encoding import Example, check_fits, collate, encode, pad_id
from .generation import GeneratedText, check_positive, device_of, generate, inference, length_batches
from .intervals import Interval, bootstrap_interval, check_bootstrap, clopper_pearson
from .logits import supervised_logits
from .scores import bleu_metric, chrf_metric, corpus_score

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

_CHUNK = 1 << 24  # float32 logits turned into probabilities at once: 64 MiB


class TargetNll(NamedTuple):
    """NLL in nats per target token; and of every sentence in order its NLL in nats and target tokens."""

    interval: Interval
    sentence_nll: list[float]
    sentence_tokens: list[int]

    def to_dict(self) -> dict[str, Any]:
        """The three fields by name, as JSON takes them."""
        return {**self._asdict(), "interval": self.interval.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TargetNll:
        """The inverse of :meth:`to_dict`."""
        return cls(Interval.from_dict(data["interval"]), data["sentence_nll"], data["sentence_tokens"])


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one test set; every interval covers 95 % over sentences.

    ``nll``: nats per target token, end of text included. ``bleu_*`` and ``chrf_*`` (chrF++): 0 to 100.
    ``ended``: share of continuations that the model itself ended (Clopper-Pearson; the other intervals are
    bootstrap). ``mean_chars``: characters of a stripped continuation. ``outputs``, ``sentence_nll`` (nats)
    and ``sentence_tokens``: one for each example, in order. ``signatures``: what to cite, for "bleu", "chrf"
    and "bootstrap".
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

    def scores(self) -> dict[str, dict[str, float]]:
        """The seven intervals alone, each as ``{"value", "low", "high"}``."""
        return {name: getattr(self, name).to_dict() for name in SCORES}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: :meth:`scores` and the remaining fields under their names."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of :meth:`to_dict`; missing, unknown or malformed fields are an InputError."""
        names = {field.name for field in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            raise InputError(f"not an evaluation: expected the fields {', '.join(sorted(names))}")
        try:
            evaluation = cls(
                **{name: Interval.from_dict(data[name]) for name in SCORES},
                outputs=[GeneratedText(**output) for output in data["outputs"]],
                sentence_nll=[float(x) for x in data["sentence_nll"]],
                sentence_tokens=[int(x) for x in data["sentence_tokens"]],
                signatures=dict(data["signatures"]),
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"not an evaluation: {error}") from None
        if not len(evaluation.outputs) == len(evaluation.sentence_nll) == len(evaluation.sentence_tokens):
            raise InputError("not an evaluation: outputs, sentence_nll and sentence_tokens differ in length")
        return evaluation


def one_line(text: str) -> str:
    """The whole text on one line: runs of whitespace become single spaces."""
    return " ".join(text.split())


def first_line(text: str) -> str:
    r"""The first line that is not blank.

    >>> first_line(" Hola\nEnglish: Bye")
    'Hola'
    """
    return one_line(text.strip().split("\n")[0])


def nll(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TargetNll:
    """Negative log-likelihood per target token, teacher-forced: all target tokens' NLL over their number.

    Parameters
    ----------
    model, tokenizer : a decoder-only transformers model and its tokenizer; logits become log-probabilities in
        float32.
    examples : prompts and targets, tokenized by :func:`~kslottery_fast.evaluation.encoding.encode`; at least one.
    batch_size, n_bootstrap, seed : of the batches and of the bootstrap over sentences.
    progress : called with (finished sentences, sentences).

    Raises
    ------
    InputError : no examples; examples or models that :func:`~kslottery_fast.evaluation.encoding.encode` and
        :func:`~kslottery_fast.evaluation.encoding.check_fits` refuse; a model that gives NaN or infinity.
    """
    _check_examples(examples)
    check_positive(batch_size=batch_size)
    check_bootstrap(n_bootstrap)
    features = [encode(tokenizer, example) for example in examples]
    check_fits(model, [feature["input_ids"] for feature in features])
    tokens = [sum(label >= 0 for label in feature["labels"]) for feature in features]
    sums, done, device = [0.0] * len(examples), 0, device_of(model)
    with inference(model):
        for batch in length_batches([len(feature["input_ids"]) for feature in features], batch_size):
            inputs = collate([features[i] for i in batch], pad_id(tokenizer))
            losses = _token_nll(model, {name: tensor.to(device) for name, tensor in inputs.items()})
            for i, part in zip(batch, losses.split([tokens[i] for i in batch]), strict=True):
                sums[i] = float(part.sum())
            done += len(batch)
            if progress:
                progress(done, len(examples))
    table = torch.tensor([sums, tokens], dtype=torch.float64).T
    if not table.isfinite().all():
        raise InputError(
            "the model gives NaN or infinite log-probabilities: its training diverged, or its file is damaged"
        )
    interval = bootstrap_interval(table.numpy(), lambda s: s[0] / s[1], n_bootstrap=n_bootstrap, seed=seed)
    return TargetNll(interval, sums, tokens)


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
    bleu_tokenizer: str = "13a",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a model on held-out pairs.

    Parameters
    ----------
    model, tokenizer : a decoder-only transformers model, left in the modes it came in, and its tokenizer.
    examples : prompts and targets; the target, on one line, is the reference of raw and first-line scores
        alike.
    max_new_tokens : length of the greedy continuation, see :func:`~kslottery_fast.evaluation.generation.generate`.
    batch_size : sentences in a batch.
    n_bootstrap, seed : of the bootstrap over sentences; the same for every score and model, so that models
        compared on the same examples are resampled in pairs.
    bleu_tokenizer : of sacrebleu; "flores101" and "flores200" give spBLEU where the SentencePiece model is at
        hand.
    progress : called with (done, 2 * sentences): every sentence counts once for its NLL and once for its
        continuation.

    Raises
    ------
    InputError : as :func:`nll`, :func:`generate` and :func:`~kslottery_fast.evaluation.scores.bleu_metric`.
    """
    _check_examples(examples)
    check_positive(max_new_tokens=max_new_tokens, batch_size=batch_size)
    check_bootstrap(n_bootstrap)
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

    def score(metric: Any, hypotheses: list[str]) -> Interval:
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


def _token_nll(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """NLL in nats of every target token of a batch, float64 on the CPU, in row-major order."""
    logits, targets = supervised_logits(model, batch)
    rows = max(1, _CHUNK // logits.shape[-1])
    losses = [
        nn.functional.cross_entropy(part.float(), target, reduction="none").cpu().double()
        for part, target in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(losses)


def _check_examples(examples: Sequence[Example]) -> None:
    if not examples:
        raise InputError("examples is empty; give at least one Example(prompt, target)")
    for example in examples:
        if not isinstance(example, Example):
            raise TypeError(f"examples holds a {type(example).__name__}; expected Example(prompt, target)")

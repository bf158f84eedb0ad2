"""The negative log-likelihood of targets, given the right prefix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from typing_extensions import Self

from kslottery_fast.base.arguments import check_integer, check_model, check_tokenizer, shown
from kslottery_fast.base.errors import DivergedError, InputError
from kslottery_fast.base.tokenizer import Tokenizer

from .checks import check_bootstrap, check_list, check_progress
from .encoding import Example, check_fits, collate, encode, pad_id
from .generation import device_of, inference, length_batches
from .intervals import Interval, bootstrap_interval
from .logits import supervised_logits
from .words import counted

_CHUNK = 1 << 24  # float32 logits turned into probabilities at once: 64 MiB
_EXAMPLE = ", e.g. Example('Spanish:', ' casa')"


class TargetNll(NamedTuple):
    """Negative log-likelihood of the targets.

    Attributes
    ----------
    interval : Interval
        NLL in nats per target token.
    sentence_nll : list of float
        NLL in nats of every sentence, in order.
    sentence_tokens : list of int
        Number of target tokens of every sentence.
    """

    interval: Interval
    sentence_nll: list[float]
    sentence_tokens: list[int]

    def __repr__(self) -> str:
        sentences, tokens = counted(len(self.sentence_tokens), "sentence"), counted(sum(self.sentence_tokens), "token")
        return f"TargetNll({self.interval:.3f} nats per token, {sentences}, {tokens})"

    def to_dict(self) -> dict[str, Any]:
        """Return the three fields by name, for JSON.

        >>> TargetNll(Interval(2.0, 2.0, 2.0), [6.0], [3]).to_dict()["sentence_tokens"]
        [3]
        """
        return {**self._asdict(), "interval": self.interval.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the NLL that :meth:`to_dict` described.

        Raises
        ------
        InputError
            A field is missing.

        Examples
        --------
        >>> found = TargetNll(Interval(2.0, 2.0, 2.0), [6.0], [3])
        >>> TargetNll.from_dict(found.to_dict()) == found
        True
        """
        if not isinstance(data, Mapping) or not set(cls._fields) <= set(data):
            raise InputError(f"data is not an NLL: expected the fields {', '.join(cls._fields)}, not {shown(data)}")
        return cls(Interval.from_dict(data["interval"]), data["sentence_nll"], data["sentence_tokens"])


def nll(
    model: nn.Module,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TargetNll:
    """Return the negative log-likelihood per target token, given the right prefix.

    It is the NLL of all target tokens, divided by their number.

    Parameters
    ----------
    model : torch.nn.Module
        A decoder-only transformers model, also offloaded by accelerate. Its modules return to the
        modes that they came in. Its logits become log-probabilities in float32.
    tokenizer : transformers tokenizer
        The model's own.
    examples : sequence of Example
        At least one. :func:`~kslottery_fast.evaluation.encoding.encode` tokenizes them.
    batch_size : int
        Sentences in a batch.
    n_bootstrap, seed : int
        Number of resamples and seed of the bootstrap over sentences.
    progress : callable, optional
        Called with (finished sentences, sentences).

    Returns
    -------
    TargetNll
        The NLL with its 95% interval, and that of every sentence.

    Raises
    ------
    InputError
        There are no examples, the model gives NaN or infinity, an argument is out of range, or
        :func:`~kslottery_fast.evaluation.encoding.encode` or :func:`~kslottery_fast.evaluation.encoding.check_fits`
        refuses an example or the model.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> nll(model, tokenizer, [Example("w", "xyz"), Example("x", "yz")])
    TargetNll(0.127 (0.127 to 0.127) nats per token, 2 sentences, 7 tokens)
    """
    check_model(model)
    check_tokenizer(tokenizer)
    examples = check_list(examples, Example, "examples", _EXAMPLE)
    check_integer(batch_size, "batch_size", 1)
    check_bootstrap(n_bootstrap, seed)
    check_progress(progress)
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
        raise DivergedError(
            "the model gives NaN or infinite log-probabilities: its training diverged, or its file is damaged"
        )
    interval = bootstrap_interval(table.numpy(), lambda s: s[0] / s[1], n_bootstrap=n_bootstrap, seed=seed)
    return TargetNll(interval, sums, tokens)


def _token_nll(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the NLL in nats of every target token of a batch, float64 on the CPU, in row-major order."""
    logits, targets = supervised_logits(model, batch)
    rows = max(1, _CHUNK // logits.shape[-1])
    losses = [
        nn.functional.cross_entropy(part.float(), target, reduction="none").cpu().double()
        for part, target in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(losses)

"""What a model predicts at every supervised position, given the right prefix, and how sure it is."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from typing_extensions import Self

from kslottery_fast.base.arguments import check_model, check_path
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_safetensors

from .checks import check_batches, check_progress, load_kind
from .generation import device_of, inference
from .logits import IGNORE_INDEX, supervised_logits
from .words import counted

_KIND = "kslottery-predictions"
_DTYPES = {"predicted": torch.int64, "margin": torch.float64, "target": torch.int64, "sentence": torch.int64}
_CHUNK = 1 << 23  # float64 probabilities held at once: 64 MiB


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Next-token predictions of one model after the right prefixes, at N positions in the order of the batches.

    Attributes
    ----------
    predicted : int64 tensor [N]
        The most probable token.
    margin : float64 tensor [N]
        p_A - p_B, the difference of the two largest probabilities.
    target : int64 tensor [N]
        The right token.
    sentence : int64 tensor [N]
        The example that the position belongs to, counted over all batches. It never decreases.

    Examples
    --------
    >>> ids = torch.tensor([5, 6, 7])
    >>> Predictions(ids, torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64), ids, torch.tensor([0, 0, 1]))
    Predictions(3 positions of 2 sentences, 100.0% correct, mean margin 0.500)
    """

    predicted: torch.Tensor
    margin: torch.Tensor
    target: torch.Tensor
    sentence: torch.Tensor

    def __len__(self) -> int:
        return len(self.target)

    def __repr__(self) -> str:
        if len(self) == 0:
            return "Predictions(0 positions)"
        right = (self.predicted == self.target).double().mean()
        size = f"{counted(len(self), 'position')} of {counted(len(self.sentence.unique()), 'sentence')}"
        return f"Predictions({size}, {right:.1%} correct, mean margin {self.margin.mean():.3f})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        write_safetensors(
            check_path(path, "path"), {name: getattr(self, name).clone() for name in _DTYPES}, {"kind": _KIND}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            The file is missing or damaged, or holds something else.
        """
        expected = "predictions: expected a file that Predictions.save wrote"
        path, tensors = load_kind(path, _KIND, _DTYPES, expected)
        for name, dtype in _DTYPES.items():
            if tensors[name].dtype != dtype or tensors[name].shape != tensors["target"].shape[:1]:
                raise InputError(f"{path}: {name} is {tensors[name].dtype} {list(tensors[name].shape)}; make it again")
        margin, sentence = tensors["margin"], tensors["sentence"]
        if not ((margin >= 0) & (margin <= 1)).all() or (sentence.diff() < 0).any():
            raise InputError(f"{path}: margins outside [0, 1] or sentences out of order; make it again")
        return cls(**tensors)


def next_token_predictions(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Return the predictions of a model at every supervised position, given the right prefix.

    The position of the end-of-text token is among them. Call this once for each model: the two need not be in memory
    together.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model with an output head, also offloaded by accelerate. Its modules return to
        the modes that they came in. The softmax is computed in float64.
    batches : sequence of mapping
        What :func:`~kslottery_fast.evaluation.logits.supervised_logits` takes, for example from
        :func:`~kslottery_fast.evaluation.encoding.collate`. Give both models the same batches.
    progress : callable, optional
        Called with (finished sentences, sentences).

    Returns
    -------
    Predictions
        One for each supervised position.

    Raises
    ------
    InputError
        There are no batches, no position is supervised, or the model gives NaN.
    TypeError
        An argument has the wrong type. Neither a single batch nor a generator is accepted as ``batches``.

    Examples
    --------
    >>> from kslottery_fast.evaluation.encoding import Example, collate, encode
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> batch = collate([encode(tokenizer, Example("w", "xyz")), encode(tokenizer, Example("x", "yz"))], 0)
    >>> next_token_predictions(model, [batch])
    Predictions(7 positions of 2 sentences, 100.0% correct, mean margin 0.876)
    """
    check_model(model)
    batches = check_batches(batches)
    check_progress(progress)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in _DTYPES}
    total = sum(len(batch["input_ids"]) for batch in batches)
    done, device = 0, device_of(model)
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    with inference(model):
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            logits, targets = supervised_logits(model, inputs)
            labels = inputs["labels"] if encoder_decoder else inputs["labels"][:, 1:]
            sentence = (labels != IGNORE_INDEX).nonzero()[:, 0] + done
            margins = [_margins(part) for part in logits.split(max(1, _CHUNK // logits.shape[-1]))]
            columns = (logits.argmax(-1), torch.cat(margins), targets, sentence)
            for name, column in zip(parts, columns, strict=True):
                parts[name].append(column.cpu())
            done += len(labels)
            if progress:
                progress(done, total)
    predictions = Predictions(**{name: torch.cat(columns) for name, columns in parts.items()})
    if len(predictions) == 0:
        raise InputError("batches supervise no position: every label is -100")
    if predictions.margin.isnan().any():
        raise InputError("the model gives NaN: its training diverged, or its file is damaged")
    return predictions


def _margins(logits: torch.Tensor) -> torch.Tensor:
    """Return p_A - p_B in float64 for logits [n, V]."""
    top = logits.double().softmax(-1).topk(2, dim=-1).values
    return top[:, 0] - top[:, 1]

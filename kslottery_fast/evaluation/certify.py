"""The paper's certification criterion, and the check of what it promises.

Two models read the same prefix: the embed-tuned model, and the transfer model, which has only the winning
tickets' rows of it. Let p_A and p_B be the two largest next-token probabilities of the embed-tuned model. The
criterion, as we read the paper (arXiv 2402.02801; by randomized smoothing with an embedding row seen as
a distribution): a prediction is certified at level alpha when ``(p_A - p_B) / 2 > tau(alpha)``, where
tau(alpha) bounds the KS distance by which a row that was not selected at alpha can have moved.

The criterion is not a proof that the two models agree: the KS distance of a row says nothing about the order
of its coordinates, and the step from rows to probabilities is an assumption of the argument. So a certificate
here always says whether the transfer model was run, and if so, how often a certified prediction came out
differently.

A second certificate makes no such assumption, because it runs the transfer model: from the share of positions at
which the two models agree in each sentence it bounds the mean share over all sentences like these
(:func:`~kslottery_fast.evaluation.intervals.mean_lower_bound`). Positions of a sentence may depend on each other in
any way; the sentences must be independent draws, and the rows must not have been chosen by looking at them. It is a
statement about the average, not about any one position, about predictions after the *right* prefix, not about free
translations, and about the two models agreeing, not about their being right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_safetensors, write_safetensors
from kslottery_fast.ks.significance import asymptotic_threshold

from .certificate import Agreement, Certificate, CertificateLevel
from .generation import device_of, inference
from .intervals import bootstrap_interval, clopper_pearson, mean_lower_bound
from .logits import IGNORE_INDEX, supervised_logits

_KIND = "kslottery-predictions"
_DTYPES = {"predicted": torch.int64, "margin": torch.float64, "target": torch.int64, "sentence": torch.int64}
_CHUNK = 1 << 23  # float64 probabilities held at once: 64 MiB


@dataclass(frozen=True, eq=False)
class Predictions:
    """Teacher-forced next-token predictions of one model; position i of N in the order of the batches.

    ``predicted`` int64 [N], the most probable token; ``margin`` float64 [N], p_A - p_B; ``target`` int64 [N],
    the right token; ``sentence`` int64 [N], which example the position belongs to, counted over all batches,
    never decreasing.
    """

    predicted: torch.Tensor
    margin: torch.Tensor
    target: torch.Tensor
    sentence: torch.Tensor

    def __len__(self) -> int:
        return len(self.target)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        write_safetensors(path, {name: getattr(self, name) for name in _DTYPES}, {"kind": _KIND})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read what :meth:`save` wrote; a missing, foreign or damaged file is an InputError."""
        tensors = read_safetensors(path, remedy="make it anew")
        if tensors.metadata.get("kind") != _KIND or set(tensors) != set(_DTYPES):
            raise InputError(f"{path} holds no predictions; expected a file that Predictions.save wrote")
        for name, dtype in _DTYPES.items():
            if tensors[name].dtype != dtype or tensors[name].shape != tensors["target"].shape[:1]:
                raise InputError(f"{path}: {name} is {tensors[name].dtype} {list(tensors[name].shape)}; make it anew")
        margin, sentence = tensors["margin"], tensors["sentence"]
        if not ((margin >= 0) & (margin <= 1)).all() or (sentence.diff() < 0).any():
            raise InputError(f"{path}: margins outside [0, 1] or sentences out of order; make it anew")
        return cls(**tensors)


def next_token_predictions(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Predictions of a model at every supervised position (the end token's too), given the right prefix.

    Run it once for each model: the two need not be in memory at once.

    Parameters
    ----------
    model : a transformers model with an output head; left in the modes it came in. Softmax is in float64.
    batches : as for :func:`~kslottery_fast.evaluation.logits.supervised_logits`, e.g. of
        :func:`~kslottery_fast.evaluation.encoding.collate`; give both models the same.
    progress : called with (finished sentences, sentences).

    Raises
    ------
    InputError : no batches, no supervised position, a model that gives NaN.
    """
    if not batches:
        raise InputError("batches is empty; give at least one batch with input_ids and labels")
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
        raise InputError("no position is supervised: every label is -100")
    if predictions.margin.isnan().any():
        raise InputError("the model gives NaN: its training diverged, or its file is damaged")
    return predictions


def certificate_from(
    predictions: Predictions,
    transfer: Predictions | None = None,
    *,
    dimension: int,
    alphas: Sequence[float],
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Certificate:
    """The certificate of an embed-tuned model from its predictions, checked against the transfer model's.

    Parameters
    ----------
    predictions : of the embed-tuned model.
    transfer : of the transfer model on the same batches; without it nothing is checked, and the certificate
        says so.
    dimension : d, the length of an embedding row; tau is that of two samples of d values.
    alphas : levels, each strictly between 0 and 1. A larger alpha has a smaller tau: more is certified.
    confidence, n_bootstrap, seed : of the bounds and of the bootstrap over sentences.

    Raises
    ------
    InputError : no or bad alphas, no positions, a dimension below 1, predictions that are not of the same
        positions.
    """
    if not alphas or not all(0 < alpha < 1 for alpha in alphas):
        raise InputError(f"alphas is {list(alphas)}; expected one or more numbers strictly between 0 and 1")
    if dimension < 1:
        raise InputError(f"dimension is {dimension}; expected the length of an embedding row")
    if len(predictions) == 0:
        raise InputError("predictions is empty; nothing can be certified")
    if transfer is not None and not (
        torch.equal(predictions.target, transfer.target) and torch.equal(predictions.sentence, transfer.sentence)
    ):
        raise InputError(
            f"the two models were not run on the same positions ({len(predictions)} and {len(transfer)}); "
            "give both the same batches"
        )
    # Sentences as consecutive numbers; an example without a supervised position does not count.
    _, sentence = predictions.sentence.unique_consecutive(return_inverse=True)
    right = predictions.predicted == predictions.target
    differs = None if transfer is None else predictions.predicted != transfer.predicted
    levels = tuple(
        _level(float(a), dimension, predictions.margin, right, differs, sentence, confidence) for a in alphas
    )
    agreement = None
    if differs is not None:
        agrees, length = torch.bincount(sentence, (~differs).double()), torch.bincount(sentence)
        agreement = Agreement(
            positions=bootstrap_interval(
                torch.stack([agrees.long(), length], 1).numpy(),
                lambda sums: sums[0] / sums[1],
                n_bootstrap=n_bootstrap,
                seed=seed,
                confidence=confidence,
            ),
            sentences=clopper_pearson(int((agrees == length).sum()), len(length), confidence, side="lower"),
            share=mean_lower_bound((agrees / length).numpy(), confidence),
        )
    return Certificate(
        dimension=dimension,
        positions=len(predictions),
        sentences=int(sentence[-1]) + 1,
        accuracy=float(right.double().mean()),
        confidence=confidence,
        levels=levels,
        agreement=agreement,
    )


def certify(
    model: Any,
    batches: Sequence[Mapping[str, torch.Tensor]],
    *,
    alphas: Sequence[float],
    transfer_model: nn.Module | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Certificate:
    """Certify an embed-tuned model on batches of held-out sentences, and check it against the transfer model.

    :func:`next_token_predictions` for each model, then :func:`certificate_from`; see there for parameters and
    errors. The dimension is that of the model's input embedding.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if embedding is None:
        raise InputError(f"{type(model).__name__} has no input embedding; certification is about its rows")
    predictions = next_token_predictions(model, batches)
    return certificate_from(
        predictions,
        None if transfer_model is None else next_token_predictions(transfer_model, batches),
        dimension=embedding.weight.shape[1],
        alphas=alphas,
        confidence=confidence,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def _margins(logits: torch.Tensor) -> torch.Tensor:
    """p_A - p_B in float64 for logits [n, V]."""
    top = logits.double().softmax(-1).topk(2, dim=-1).values
    return top[:, 0] - top[:, 1]


def _level(
    alpha: float,
    dimension: int,
    margin: torch.Tensor,
    right: torch.Tensor,
    differs: torch.Tensor | None,
    sentence: torch.Tensor,
    confidence: float,
) -> CertificateLevel:
    tau = asymptotic_threshold(alpha, dimension, dimension)
    certified = margin / 2 > tau
    violations = violating = upper = None
    if differs is not None:
        violated = certified & differs
        violations, violating = int(violated.sum()), len(sentence[violated].unique())
        upper = clopper_pearson(violating, int(sentence[-1]) + 1, confidence, side="upper").high
    return CertificateLevel(
        alpha=alpha,
        tau=tau,
        certified_positions=int(certified.sum()),
        certified=float(certified.double().mean()),
        certified_accuracy=float((certified & right).double().mean()),
        violations=violations,
        violating_sentences=violating,
        violating_sentences_upper=upper,
    )

"""The paper's certification criterion, and a check of what it promises.

Two models read the same prefix: the embed-tuned model, and the transfer model, which takes only the rows of the
tickets from it. Let p_A and p_B be the two largest next-token probabilities of the embed-tuned model. This is the
criterion as this package reads the paper (arXiv 2402.02801), which uses randomized smoothing and treats an embedding
row as a distribution: a prediction is certified at level alpha when ``(p_A - p_B) / 2 > tau(alpha)``. Here tau(alpha)
bounds the KS distance by which a row that was not selected at alpha can have moved.

The criterion is not a proof that the two models agree. The KS distance of a row says nothing about the order of its
coordinates, and the argument assumes the step from rows to probabilities. A row whose coordinates were permuted has D =
0 and can change any prediction, so no criterion that knows the rows by D alone can be sound. So a certificate here
always says whether the transfer model was run, and if so, how often it contradicted a certified prediction.

Two criteria are sound. A position that reads no row in which the models differ has the same prediction in both
(:mod:`~kslottery_fast.evaluation.reading`). And the L2 distances by which rows differ bound how far the logits can move
(:mod:`~kslottery_fast.evaluation.logit_bounds`).

Another certificate needs no assumption about the model, because it runs the transfer model. From the share of positions
at which the two models agree in each sentence, it bounds the mean share over all sentences like these
(:func:`~kslottery_fast.evaluation.intervals.mean_lower_bound`). Positions of a sentence may depend on each other in any
way. The sentences must be independent draws, and the rows must not have been chosen by looking at them. The bound is a
statement about the average, not about any single position. It is about predictions after the *right* prefix, not about
free translations, and about the agreement of the two models, not about their being right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_integer, check_model
from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.significance import asymptotic_threshold

from .certificate import Certificate
from .checks import check_alphas, check_batches, check_bootstrap, check_share
from .compared import compare_predictions
from .predictions import Predictions, next_token_predictions

__all__ = ["Predictions", "certificate_from", "certify", "next_token_predictions"]


def certificate_from(
    predictions: Predictions,
    transfer: Predictions | None = None,
    *,
    dimension: int,
    alphas: Sequence[float],
    reads: torch.Tensor | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Certificate:
    """Return the certificate that follows from predictions of an embed-tuned model and of the transfer model.

    Parameters
    ----------
    predictions : Predictions
        Those of the embed-tuned model.
    transfer : Predictions, optional
        Those of the transfer model on the same batches. Without them nothing is checked, and the certificate says so.
    dimension : int
        d, the length of an embedding row. tau is that of two samples of d values.
    alphas : sequence of float
        Levels, each strictly between 0 and 1. A larger alpha has a smaller tau, so more is certified.
    reads : bool tensor [N], optional
        Whether each position reads a row in which the two models differ, see
        :meth:`~kslottery_fast.evaluation.reading.ReadTokens.reads`. With it the levels count the positions that are
        certified by reading.
    confidence : float
        Confidence of each bound.
    n_bootstrap, seed : int
        Number of resamples and seed of the bootstrap over sentences.

    Returns
    -------
    Certificate
        One level for each alpha.

    Raises
    ------
    InputError
        There are no alphas or no positions, an argument is out of range, or the two predictions are not of the same
        positions.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> ids = torch.tensor([5, 6, 7])
    >>> tuned = Predictions(ids, torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64), ids, torch.tensor([0, 0, 1]))
    >>> certificate_from(tuned, dimension=576, alphas=[0.05])
    Certificate(3 positions of 2 sentences; alpha 0.05: 66.7% of the positions certified, not checked)
    """
    check_integer(dimension, "dimension", 1)
    levels_of = check_alphas(alphas)
    check_share(confidence)
    check_bootstrap(n_bootstrap, seed)
    compared = compare_predictions(predictions, transfer, reads)
    return Certificate(
        dimension=dimension,
        positions=len(predictions),
        sentences=compared.sentences,
        accuracy=float(compared.right.double().mean()),
        confidence=confidence,
        levels=tuple(compared.level(a, asymptotic_threshold(a, dimension, dimension), confidence) for a in levels_of),
        agreement=compared.agreement(confidence, n_bootstrap, seed),
    )


def certify(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]],
    *,
    alphas: Sequence[float],
    transfer_model: nn.Module | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Certificate:
    """Certify an embed-tuned model on held-out sentences, and check that against the transfer model.

    This is :func:`next_token_predictions` for each model, followed by :func:`certificate_from`.

    Parameters
    ----------
    model : torch.nn.Module
        The embed-tuned model. The dimension is that of its input embedding.
    batches : sequence of mapping
        Held-out sentences, for example from :func:`~kslottery_fast.evaluation.encoding.collate`.
    alphas : sequence of float
        Levels, each strictly between 0 and 1.
    transfer_model : torch.nn.Module, optional
        The original model with the rows of the tickets. Without it nothing is checked, and the certificate says so.
    confidence : float
        Confidence of each bound.
    n_bootstrap, seed : int
        Number of resamples and seed of the bootstrap over sentences.

    Returns
    -------
    Certificate
        What is certified at each alpha and, with ``transfer_model``, how often that was wrong.

    Raises
    ------
    InputError
        The model has no input embedding, an argument is out of range, or :func:`next_token_predictions` refuses the
        batches.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.encoding import Example, collate, encode
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> batch = collate([encode(tokenizer, Example("w", "xyz")), encode(tokenizer, Example("x", "yz"))], 0)
    >>> certify(model, [batch], alphas=[0.05], transfer_model=model)
    Certificate(7 positions of 2 sentences; alpha 0.05: 100.0% of the positions certified, wrong at 0 of 7 (0.0%))
    """
    whole: Any = check_model(model)
    if transfer_model is not None:
        check_model(transfer_model, "transfer_model")
    batches = check_batches(batches)
    check_alphas(alphas)
    check_share(confidence)
    check_bootstrap(n_bootstrap, seed)
    embedding = whole.get_input_embeddings() if hasattr(whole, "get_input_embeddings") else None
    if embedding is None:
        raise InputError(f"model, a {type(model).__name__}, has no input embedding: certification is about its rows")
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

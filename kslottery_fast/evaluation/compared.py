"""The predictions of two models on the same positions, compared: what certificates are made of."""

from dataclasses import dataclass

import torch

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

from .certificate import Agreement, CertificateLevel
from .checks import check_instance
from .intervals import bootstrap_interval, clopper_pearson, mean_lower_bound
from .predictions import Predictions

_REMEDY = ", e.g. of next_token_predictions(model, batches)"


@dataclass(frozen=True, eq=False)
class Compared:
    """What two models predict at N positions, in tensors [N].

    Attributes
    ----------
    margin : torch.Tensor
        float64, the margin of the embed-tuned model.
    right : torch.Tensor
        bool, whether the embed-tuned model predicts the right token.
    differs : torch.Tensor or None
        bool, whether the transfer model predicts another token. None if it was not run.
    unread : torch.Tensor or None
        bool, whether the position reads no row in which the models differ. None if that is not known.
    sentence : torch.Tensor
        int64, consecutive numbers from 0. An example without a supervised position has none.
    """

    margin: torch.Tensor
    right: torch.Tensor
    differs: torch.Tensor | None
    unread: torch.Tensor | None
    sentence: torch.Tensor

    @property
    def sentences(self) -> int:
        """The number of sentences."""
        return int(self.sentence[-1]) + 1

    def level(self, alpha: float, tau: float, confidence: float) -> CertificateLevel:
        """Return the level at which a half margin above ``tau`` is certified."""
        certified = self.margin / 2 > tau
        violations = violating = upper = None
        if self.differs is not None:
            violated = certified & self.differs
            violations, violating = int(violated.sum()), len(self.sentence[violated].unique())
            upper = clopper_pearson(violating, self.sentences, confidence, side="upper").high
        known = self.unread is not None and self.differs is not None
        return CertificateLevel(
            alpha=alpha,
            tau=tau,
            certified_positions=int(certified.sum()),
            certified=float(certified.double().mean()),
            certified_accuracy=float((certified & self.right).double().mean()),
            violations=violations,
            violating_sentences=violating,
            violating_sentences_upper=upper,
            read_positions=None if self.unread is None else int(self.unread.sum()),
            read_violations=int((self.unread & self.differs).sum()) if known else None,  # type: ignore[operator]
        )

    def agreement(self, confidence: float, n_bootstrap: int, seed: int) -> Agreement | None:
        """Return how often the two models agree. None if the transfer model was not run."""
        if self.differs is None:
            return None
        agrees, length = torch.bincount(self.sentence, (~self.differs).double()), torch.bincount(self.sentence)
        return Agreement(
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


def compare_predictions(predictions: Predictions, transfer: Predictions | None, reads: torch.Tensor | None) -> Compared:
    """Compare two predictions.

    Parameters
    ----------
    predictions, transfer, reads
        As for :func:`~kslottery_fast.evaluation.certify.certificate_from`.

    Returns
    -------
    Compared

    Raises
    ------
    InputError
        There are no positions, or the arguments are not of the same positions.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> ids, margin = torch.tensor([5, 6]), torch.tensor([0.9, 0.5], dtype=torch.float64)
    >>> tuned, other = (Predictions(found, margin, ids, torch.tensor([3, 4])) for found in (ids, torch.tensor([5, 9])))
    >>> compare_predictions(tuned, other, None).differs
    tensor([False,  True])
    """
    check_instance(predictions, Predictions, "predictions", _REMEDY)
    if transfer is not None:
        check_instance(transfer, Predictions, "transfer", _REMEDY)
    if reads is not None and not (torch.is_tensor(reads) and reads.dtype == torch.bool):
        raise TypeError(f"reads is {shown(reads)}: expected a bool tensor [N], e.g. of read_tokens(batches).reads(ids)")
    if len(predictions) == 0:
        raise InputError("predictions is empty: nothing can be certified")
    if transfer is not None and not (
        torch.equal(predictions.target, transfer.target) and torch.equal(predictions.sentence, transfer.sentence)
    ):
        raise InputError(
            f"predictions and transfer are not of the same positions ({len(predictions)} and {len(transfer)}): "
            "give both models the same batches"
        )
    if reads is not None and reads.shape != predictions.target.shape:
        raise InputError(
            f"reads has the shape {list(reads.shape)}: expected {list(predictions.target.shape)}, as many positions as "
            "predictions"
        )
    return Compared(
        margin=predictions.margin,
        right=predictions.predicted == predictions.target,
        differs=None if transfer is None else predictions.predicted != transfer.predicted,
        unread=None if reads is None else ~reads,
        sentence=predictions.sentence.unique_consecutive(return_inverse=True)[1],
    )

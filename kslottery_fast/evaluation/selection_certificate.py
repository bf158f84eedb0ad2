"""The criterion for rows that any selector chose, what is certified by reading, and how often the models agree.

The paper's criterion is about a level alpha of the KS test. What its argument uses is that D of every row that was left
out is at most tau(alpha). Rows that were chosen in another way have such a number too: the largest D that they leave
out. It takes the place of tau here. The agreement of the two models and the positions that are certified by reading do
not depend on how the rows were chosen.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from kslottery_fast.base.arguments import check_integer, shown
from kslottery_fast.base.errors import InputError

from .certificate import Agreement, CertificateLevel
from .checks import check_bootstrap, check_instance, check_share
from .compared import compare_predictions
from .predictions import Predictions
from .words import counted


@dataclass(frozen=True, repr=False)
class SelectionCertificate:
    """What is certified, and how often that is wrong, for one set of rows.

    Attributes
    ----------
    selected_by : str
        How the rows were chosen.
    rows : int
        How many there are.
    positions, sentences : int
        How many were looked at.
    level : CertificateLevel
        The criterion with the largest D that was left out as ``tau``. ``alpha`` is the largest level at which the
        asymptotic test selects none of the rows that were left out.
    agreement : Agreement
        How often the two models predict the same token.
    """

    selected_by: str
    rows: int
    positions: int
    sentences: int
    level: CertificateLevel
    agreement: Agreement

    def __repr__(self) -> str:
        return f"SelectionCertificate({self.summary()})"

    def summary(self) -> str:
        """Return one line."""
        level, agreement = self.level, self.agreement
        wrong = "" if level.violation_rate is None else f", wrong at {level.violation_rate:.1%} of these"
        text = f"{counted(self.rows, 'row')} by {self.selected_by}: {level.certified:.1%} certified{wrong}"
        if level.read_positions is not None:
            text += f", {level.read_positions / self.positions:.1%} certified by reading"
        return f"{text}, agreement at {agreement.positions.value:.1%} of the positions"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return asdict(self)


def selection_certificate(
    predictions: Predictions,
    transfer: Predictions,
    *,
    selected_by: str,
    rows: int,
    largest_left_out: float,
    dimension: int,
    reads: Tensor | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> SelectionCertificate:
    """Return the certificate of a transfer model whose rows were chosen in any way.

    Parameters
    ----------
    predictions, transfer : Predictions
        Those of the embed-tuned model and of the transfer model, on the same batches.
    selected_by : str
        How the rows were chosen.
    rows : int
        How many rows the transfer model takes.
    largest_left_out : float
        The largest D of a row that it does not take, from 0 to 1.
    dimension : int
        d, the length of an embedding row.
    reads : bool tensor [N], optional
        Whether each position reads a row in which the two models differ.
    confidence : float
        Confidence of each bound.
    n_bootstrap, seed : int
        Number of resamples and seed of the bootstrap over sentences.

    Returns
    -------
    SelectionCertificate

    Raises
    ------
    InputError
        There are no positions, an argument is out of range, or the predictions are not of the same positions.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> import torch
    >>> ids, margin = torch.tensor([5, 6, 7]), torch.tensor([0.9, 0.8, 0.1], dtype=torch.float64)
    >>> tuned, other = (Predictions(p, margin, ids, torch.tensor([0, 0, 1])) for p in (ids, torch.tensor([5, 9, 7])))
    >>> options = {"selected_by": "frequency", "rows": 18, "largest_left_out": 0.3, "dimension": 576}
    >>> selection_certificate(tuned, other, **options)
    SelectionCertificate(18 rows by frequency: 66.7% certified, wrong at 50.0% of these, agreement at 66.7% of the
    positions)
    """
    check_instance(selected_by, str, "selected_by", ", e.g. 'frequency'")
    check_integer(rows, "rows", 0)
    check_integer(dimension, "dimension", 1)
    if isinstance(largest_left_out, bool) or not isinstance(largest_left_out, (int, float)):
        raise TypeError(f"largest_left_out is {shown(largest_left_out)}: expected a number from 0 to 1")
    if not 0 <= largest_left_out <= 1:
        raise InputError(f"largest_left_out is {largest_left_out}: expected a number from 0 to 1, as D is")
    check_share(confidence)
    check_bootstrap(n_bootstrap, seed)
    check_instance(transfer, Predictions, "transfer", ", e.g. of next_token_predictions(model, batches)")
    compared = compare_predictions(predictions, transfer, reads)
    tau = float(largest_left_out)
    agreement = compared.agreement(confidence, n_bootstrap, seed)
    assert agreement is not None, "the transfer model was run"
    return SelectionCertificate(
        selected_by=selected_by,
        rows=rows,
        positions=len(predictions),
        sentences=compared.sentences,
        level=compared.level(min(1.0, 2 * math.exp(-dimension * tau**2)), tau, confidence),
        agreement=agreement,
    )


def largest_left_out(counts: Mapping[int, int], selected: Tensor, dimension: int) -> float:
    """Return the largest D of the rows that were not selected, 0 if every row that moved was.

    Parameters
    ----------
    counts : mapping of int to int
        h = d * D of each row that moved, by token id.
    selected : int64 tensor
        The token ids that were selected.
    dimension : int
        d.

    Examples
    --------
    >>> import torch
    >>> largest_left_out({3: 10, 5: 4, 8: 2}, torch.tensor([3, 8]), 20)
    0.2
    """
    left = counts.keys() - set(selected.tolist())
    return max((counts[token] for token in left), default=0) / dimension

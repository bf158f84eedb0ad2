"""What a certificate follows from, kept in files: with it the certificate is made again without any model.

==========================  ==========================================================================
file                        content
==========================  ==========================================================================
before.safetensors          token_ids int64 [A] and rows [A, d] of the original model, in its own dtype
predictions.safetensors     of the embed-tuned model on the test split (:meth:`Predictions.save`)
predictions-K.safetensors   of the transfer model with the K rows of largest D; 0: the original model
==========================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_safetensors, write_safetensors

from .certificate import Certificate
from .certify import Predictions, certificate_from

_BEFORE, _TUNED = "before.safetensors", "predictions.safetensors"


@dataclass(frozen=True, eq=False)
class Basis:
    """Rows before Embed Tuning, and what the tuned and the transfer models predict on the same batches.

    Attributes
    ----------
    token_ids : int64 tensor [A]
        The rows that trained, ascending.
    before : tensor [A, d]
        What they were.
    tuned : Predictions
        Of the embed-tuned model.
    transfers : mapping of int to Predictions
        Those of the transfer models by their number of rows: the sets that a test or top_k selects lie within each
        other, so the number says which.
    """

    token_ids: Tensor
    before: Tensor
    tuned: Predictions
    transfers: Mapping[int, Predictions]

    def certificate(
        self, levels: Mapping[float, int], *, own: int, alpha: float, n_bootstrap: int = 1000, seed: int = 0
    ) -> Certificate:
        """The certificate that follows.

        Parameters
        ----------
        levels : mapping of float to int
            For every alpha of the curve, how many rows it selects. The criterion at alpha speaks of the tickets at
            alpha, so each level is checked against a transfer model of its own.
        own : int
            Rows of the transfer model whose agreement is reported.
        alpha : float
            The level at which ``own`` rows were chosen.
        n_bootstrap, seed : int
            Of the bootstrap over sentences.

        Raises
        ------
        InputError
            Predictions of a transfer model that were not kept, and what
            :func:`~kslottery_fast.evaluation.certify.certificate_from` refuses.
        """
        missing = {own, *levels.values()} - set(self.transfers)
        if missing:
            raise InputError(f"no predictions were kept of the transfer model with {min(missing)} rows")

        def certificate(rows: int, level: float) -> Certificate:
            options = {"dimension": self.before.shape[1], "n_bootstrap": n_bootstrap, "seed": seed}
            return certificate_from(self.tuned, self.transfers[rows], alphas=[level], **options)

        curve = [replace(certificate(rows, level).levels[0], transferred=rows) for level, rows in levels.items()]
        return replace(certificate(own, alpha), levels=tuple(curve))

    def save(self, folder: Path) -> None:
        """Write the files named above."""
        write_safetensors(folder / _BEFORE, {"token_ids": self.token_ids, "rows": self.before})
        self.tuned.save(folder / _TUNED)
        for rows, predictions in self.transfers.items():
            predictions.save(folder / f"predictions-{rows}.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Basis:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            Nothing was kept beside the certificate; missing or damaged files.
        """
        if not (folder / _TUNED).exists():
            raise InputError(
                f"{folder} holds a certificate without the predictions that it follows from; remove that folder and "
                "give the command that made it again: it makes this stage alone anew"
            )
        before = read_safetensors(folder / _BEFORE)
        kept = {path.stem.partition("-")[2]: path for path in folder.glob("predictions-*.safetensors")}
        transfers = {int(rows): Predictions.load(path) for rows, path in kept.items() if rows.isdecimal()}
        return cls(before["token_ids"], before["rows"], Predictions.load(folder / _TUNED), transfers)

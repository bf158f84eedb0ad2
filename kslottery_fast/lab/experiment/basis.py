"""What a certificate follows from, kept in its stage, so that anybody can compute it again without the model.

==========================  ==========================================================================
file                        content
==========================  ==========================================================================
before.safetensors          token_ids int64 [A] and rows [A, d] of the original model, in its own dtype
predictions.safetensors     of the embed-tuned model on the test split (:meth:`Predictions.save`)
predictions-K.safetensors   of the transfer model with the K rows of largest D; 0: the original model
==========================  ==========================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_safetensors, write_safetensors
from kslottery_fast.evaluation.certificate import Certificate
from kslottery_fast.evaluation.certify import Predictions, certificate_from

from .run_settings import RunSettings

_BEFORE, _TUNED = "before.safetensors", "predictions.safetensors"


@dataclass(frozen=True, eq=False)
class Basis:
    """Rows before Embed Tuning, and what the tuned and the transfer models predict on the test split.

    ``token_ids`` int64 [A], ascending, and their ``before`` [A, d]; ``tuned``, predictions of the embed-tuned model;
    ``transfers``, those of the transfer models by their number of rows: the sets that a test or top_k selects lie
    within each other, so the number says which.
    """

    token_ids: Tensor
    before: Tensor
    tuned: Predictions
    transfers: Mapping[int, Predictions]

    def certificate(self, settings: RunSettings, levels: Mapping[float, int], own: int) -> Certificate:
        """The certificate that follows.

        Parameters
        ----------
        settings : of the run: alpha, resamples and seed of the bootstrap.
        levels : for every alpha of the curve, how many rows it selects. The criterion at alpha speaks of the tickets
            at alpha, so each level is checked against a transfer model of its own.
        own : rows of the transfer model whose agreement is reported.

        Raises
        ------
        InputError : predictions of a transfer model that were not kept.
        """
        missing = {own, *levels.values()} - set(self.transfers)
        if missing:
            raise InputError(f"no predictions were kept of the transfer model with {min(missing)} rows")
        options = {"dimension": self.before.shape[1], "n_bootstrap": settings.n_bootstrap, "seed": settings.seed}
        curve = [
            dataclasses.replace(
                certificate_from(self.tuned, self.transfers[rows], alphas=[alpha], **options).levels[0],
                transferred=rows,
            )
            for alpha, rows in levels.items()
        ]
        whole = certificate_from(self.tuned, self.transfers[own], alphas=[settings.alpha], **options)
        return dataclasses.replace(whole, levels=tuple(curve))

    def save(self, folder: Path) -> None:
        """Write the files named above into a stage's folder."""
        write_safetensors(folder / _BEFORE, {"token_ids": self.token_ids, "rows": self.before})
        self.tuned.save(folder / _TUNED)
        for rows, predictions in self.transfers.items():
            predictions.save(folder / f"predictions-{rows}.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Basis:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError : a stage of an older version, which kept nothing; missing or damaged files.
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

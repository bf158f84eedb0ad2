"""The files that a certificate follows from. The certificate can be computed again from them without any model.

==========================  ==========================================================================
file                        content
==========================  ==========================================================================
before.safetensors          token_ids int64 [A] and rows [A, d] of the original model, in its own dtype
predictions.safetensors     of the embed-tuned model on the test split (:meth:`Predictions.save`)
predictions-K.safetensors   of the transfer model with the K rows of largest D; 0: the original model
read.safetensors            the tokens that each position reads (:meth:`ReadTokens.save`); absent if the head follows
                            the rows, and in folders of older versions
==========================  ==========================================================================
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from typing_extensions import Self

from kslottery_fast.base.arguments import check_integer, check_path, shown
from kslottery_fast.base.content import check_tensors
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_safetensors, write_safetensors

from .certificate import Certificate
from .certify import Predictions, certificate_from
from .checks import check_share
from .reading import ReadTokens
from .words import counted

_BEFORE, _TUNED, _TOKENS = "before.safetensors", "predictions.safetensors", "read.safetensors"


@dataclass(frozen=True, eq=False, repr=False)
class Basis:
    """Rows before Embed Tuning, and what the tuned model and the transfer models predict on the same batches.

    Attributes
    ----------
    token_ids : int64 tensor [A]
        The rows that trained, in ascending order.
    before : tensor [A, d]
        Their values before training.
    tuned : Predictions
        Predictions of the embed-tuned model.
    transfers : mapping of int to Predictions
        Predictions of each transfer model, by its number of rows. The sets of rows that a test or top_k selects are
        nested, so the number identifies the set.
    tokens : ReadTokens or None
        What each position reads. None if that says nothing, because the output heads differ, or if it was not kept.

    Examples
    --------
    >>> import tempfile, torch
    >>> ids = torch.tensor([5, 6, 7])
    >>> tuned = Predictions(ids, torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64), ids, torch.tensor([0, 0, 1]))
    >>> basis = Basis(torch.arange(10), torch.zeros(10, 576), tuned, {2: tuned})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     basis.save(folder)
    ...     Basis.load(folder)
    Basis(10 rows, d=576, 3 positions, transfer models with 2 rows)
    >>> basis.certificate({0.05: 2}, own=2, alpha=0.05)
    Certificate(3 positions of 2 sentences; alpha 0.05: 66.7% of the positions certified, wrong at 0 of 2 (0.0%))
    """

    token_ids: Tensor
    before: Tensor
    tuned: Predictions
    transfers: Mapping[int, Predictions]
    tokens: ReadTokens | None = None

    def __repr__(self) -> str:
        rows = ", ".join(f"{count:,}" for count in sorted(self.transfers)) or "no"
        return (
            f"Basis({counted(len(self.token_ids), 'row')}, d={self.before.shape[1]}, "
            f"{counted(len(self.tuned), 'position')}, "
            f"transfer models with {rows} rows)"
        )

    def certificate(
        self,
        levels: Mapping[float, int],
        *,
        own: int,
        alpha: float,
        differing: Mapping[int, Tensor] | None = None,
        n_bootstrap: int = 1000,
        seed: int = 0,
    ) -> Certificate:
        """Return the certificate that follows.

        Parameters
        ----------
        levels : mapping of float to int
            For every alpha of the curve, how many rows it selects. The criterion at alpha is about the tickets at
            alpha, so each level is checked against a transfer model of its own.
        own : int
            Rows of the transfer model whose agreement is reported.
        alpha : float
            The level at which ``own`` rows were chosen.
        differing : mapping of int to int64 tensor, optional
            For each number of rows, the ids of the rows that differ between that transfer model and the embed-tuned
            model: those that moved and were not transferred. With them, and with ``tokens``, the levels count the
            positions that are certified by reading.
        n_bootstrap, seed : int
            Number of resamples and seed of the bootstrap over sentences.

        Raises
        ------
        InputError
            The predictions of a transfer model were not kept, its differing rows are missing, ``tokens`` are of other
            positions, or :func:`~kslottery_fast.evaluation.certify.certificate_from` refuses an argument.
        TypeError
            An argument has the wrong type.
        """
        if not isinstance(levels, Mapping):
            raise TypeError(f"levels is {shown(levels)}: expected a mapping of alphas to numbers of rows")
        check_integer(own, "own", 0)
        check_share(alpha, "alpha")
        missing = {own, *levels.values()} - set(self.transfers)
        if missing:
            raise InputError(f"no predictions were kept of the transfer model with {min(missing)} rows")
        reads = self._reads(differing, {own, *levels.values()})

        def certificate(rows: int, level: float) -> Certificate:
            return certificate_from(
                self.tuned,
                self.transfers[rows],
                dimension=self.before.shape[1],
                alphas=[level],
                reads=reads.get(rows),
                n_bootstrap=n_bootstrap,
                seed=seed,
            )

        curve = [replace(certificate(rows, level).levels[0], transferred=rows) for level, rows in levels.items()]
        return replace(certificate(own, alpha), levels=tuple(curve))

    def _reads(self, differing: Mapping[int, Tensor] | None, counts: set[int]) -> dict[int, Tensor]:
        """For each number of rows, whether a position reads a row that differs. Empty if that is not known."""
        if self.tokens is None or differing is None:
            return {}
        if missing := counts - set(differing):
            raise InputError(f"differing names no rows for the transfer model with {min(missing)} rows")
        self.tokens.check_same(self.tuned)
        return {rows: self.tokens.reads(differing[rows]) for rows in counts}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files that the head of this module names."""
        folder = check_path(folder, "folder")
        write_safetensors(folder / _BEFORE, {"token_ids": self.token_ids, "rows": self.before})
        self.tuned.save(folder / _TUNED)
        for rows, predictions in self.transfers.items():
            predictions.save(folder / f"predictions-{rows}.safetensors")
        if self.tokens is not None:
            self.tokens.save(folder / _TOKENS)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            The folder holds a certificate without its predictions, or a file is missing or damaged.
        """
        folder = check_path(folder, "folder")
        if not (folder / _TUNED).exists():
            raise InputError(
                f"{folder} holds a certificate without the predictions from which it follows: remove that folder and "
                "run the command that made it again; only this stage is made again"
            )
        before = read_safetensors(folder / _BEFORE)
        check_tensors(folder / _BEFORE, before, {"token_ids": "int k", "rows": "float k d"})
        kept = {path.stem.partition("-")[2]: path for path in folder.glob("predictions-*.safetensors")}
        transfers = {int(rows): Predictions.load(path) for rows, path in kept.items() if rows.isdecimal()}
        tokens = ReadTokens.load(folder / _TOKENS) if (folder / _TOKENS).exists() else None
        return cls(before["token_ids"], before["rows"], Predictions.load(folder / _TUNED), transfers, tokens)

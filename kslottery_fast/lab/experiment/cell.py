"""One language and one training seed of a comparison: what its arms have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json
from kslottery_fast.rows.overlay import RowEmbedding

from .console import ProgressCallback
from .evidence import SELECTORS, Evidence
from .run_folder import RunFolder
from .settings import ArmSpec
from .stages import train_table_rows
from .training import TrainedRows
from .workshop import Workshop

EMBED = ArmSpec("embed")
UNTUNED = ArmSpec("untuned")


class Cell:
    """A language (its workshop), a training seed, and the stages of both.

    ``folder`` sees the stages of this cell, ``shop.folder`` those that all seeds of the language share.
    """

    def __init__(self, shop: Workshop, code: str, seed: int) -> None:
        self.shop, self.code, self.seed = shop, code, seed
        self.folder: RunFolder = shop.folder.view(f"{seed}.")

    @cached_property
    def evidence(self) -> Evidence:
        """What the finished Embed Tuning of this cell showed."""
        return Evidence.load(self.folder.stage_path(str(EMBED)))

    @cached_property
    def tuned(self) -> TrainedRows:
        """The rows after Embed Tuning."""
        return TrainedRows.load(self.folder.stage_path(str(EMBED)))

    def home(self, spec: ArmSpec) -> RunFolder:
        """Where the stages of an arm lie: those of an arm without a seed are shared by all seeds."""
        from .arms import ARMS

        return self.folder if ARMS[spec.name].seeded else self.shop.folder

    def record(self, spec: ArmSpec) -> dict[str, object]:
        """What the finished arm says of itself: ``rows`` and ``trained_parameters``."""
        return dict(read_json(self.home(spec).stage_path(str(spec)) / "arm.json"))

    def coverage(self, spec: ArmSpec) -> float | None:
        """The share of the tokens of the training examples, prompts included, whose rows a finished arm changes.

        None for an arm that changes other parameters.
        """
        rows = self.record(spec)["rows"]
        if not rows:
            return None if rows is None else 0.0
        changed = TrainedRows.load(self.home(spec).stage_path(str(spec))).token_ids
        seen = self.evidence.frequency
        return int(seen[torch.isin(self.evidence.token_ids, changed)].sum()) / int(seen.sum())

    def size(self, spec: ArmSpec) -> int:
        """How many rows an arm takes; an alpha may select none."""
        if spec.size == "active":
            return len(self.evidence)
        if isinstance(spec.size, float):
            settings = self.shop.settings
            return self.evidence.significant(spec.size, settings.method, settings.correction)
        assert isinstance(spec.size, int), "arms with a size get one when they are parsed"
        return spec.size

    def choose(self, selector: str, spec: ArmSpec) -> Tensor:
        """The token ids that a selector takes for an arm, the first chosen first. int64 [k].

        Raises
        ------
        InputError : more rows than there are.
        """
        k, order = self.size(spec), SELECTORS[selector](self.evidence, self.seed)
        if k > len(order):
            raise InputError(
                f"arm {spec} asks for {k:,} rows, but only {len(order):,} rows can be chosen by {selector} here "
                f"({self.code}, seed {self.seed}); ask for fewer"
            )
        return self.evidence.token_ids[order[:k]]

    def budget(self, spec: ArmSpec) -> int:
        """The numbers that an arm may train: those of as many rows as its size says."""
        return self.size(spec) * self.evidence.dimension

    def own_tickets(self) -> ArmSpec:
        """The tickets that certificate and interpretation speak of: those at alpha, or top_k where it selects none."""
        spec = ArmSpec("transfer", self.shop.settings.alpha)
        return spec if self.size(spec) else ArmSpec("transfer", self.shop.settings.top_k)

    def train(
        self,
        token_ids: Tensor,
        learning_rate: float,
        folder: Path,
        progress: ProgressCallback,
        before_update: Callable[[int, RowEmbedding], None] | None = None,
    ) -> TrainedRows:
        """Train rows of the original model in this cell."""
        return train_table_rows(self.shop, token_ids, learning_rate, self.seed, folder, progress, before_update)

"""One language and one training seed of an experiment: what its arms have in common."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json
from kslottery_fast.tickets.evidence import SELECTORS, Evidence, Witness
from kslottery_fast.tickets.tickets import Tickets

from .console import ProgressCallback
from .run_folder import RunFolder
from .specs import ArmSpec
from .trained import TrainedRows
from .workshop import Workshop

if TYPE_CHECKING:
    from .training import Recipe

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
        return Evidence.load(self.stage(EMBED))

    @cached_property
    def tuned(self) -> TrainedRows:
        """The rows after Embed Tuning."""
        return TrainedRows.load(self.stage(EMBED))

    @cached_property
    def tickets(self) -> Tickets:
        """The rows that alpha selects, or top_k where it selects none."""
        found = self.evidence.table().tickets(**self.shop.settings.selection)
        if len(found) == 0:
            raise InputError("Embed Tuning moved no row at all; raise learning_rate or steps")
        return found

    def home(self, spec: ArmSpec) -> RunFolder:
        """Where the stages of an arm lie: those of an arm without a seed are shared by all seeds."""
        return self.folder if spec.facts.seeded else self.shop.folder

    def stage(self, spec: ArmSpec) -> Path:
        return self.home(spec).stage_path(str(spec))

    def record(self, spec: ArmSpec) -> dict[str, object]:
        """What the finished arm says of itself: ``rows`` and ``trained_parameters``."""
        return dict(read_json(self.stage(spec) / "arm.json"))

    def coverage(self, spec: ArmSpec) -> float | None:
        """The share of the training tokens whose rows a finished arm changes; None: it changes other parameters."""
        rows = self.record(spec)["rows"]
        if not rows:
            return None if rows is None else 0.0
        changed = TrainedRows.load(self.stage(spec)).token_ids
        seen = self.evidence.frequency
        return int(seen[torch.isin(self.evidence.token_ids, changed)].sum()) / int(seen.sum())

    def size(self, spec: ArmSpec) -> int:
        """How many rows an arm takes; an alpha may select none."""
        if spec.size == "active":
            return len(self.evidence)
        if spec.size == "tickets":
            return len(self.tickets)
        if isinstance(spec.size, float):
            settings = self.shop.settings
            return self.evidence.significant(spec.size, settings.method, settings.correction)
        assert isinstance(spec.size, int), "arms with a size get one when they are parsed"
        return spec.size

    def choose(self, selector: str, spec: ArmSpec) -> Tensor:
        """The token ids that a selector takes for an arm, the first chosen first. int64 [k]."""
        k, order = self.size(spec), SELECTORS[selector](self.evidence, self.seed)
        if k > len(order):
            raise InputError(
                f"arm {spec} asks for {k:,} rows, but only {len(order):,} rows can be chosen by {selector} here "
                f"({self.code}, seed {self.seed}); ask for fewer"
            )
        ids = self.evidence.token_ids[order[:k]]
        # The order of rows rounds their gradient norm. A draw as large as the tickets is trained in that of the table.
        return ids.sort().values if selector == "random" and spec.size == "tickets" else ids

    def own_tickets(self) -> ArmSpec:
        """The tickets that certificate and interpretation speak of: those at alpha, or top_k where it selects none."""
        by_alpha = self.tickets.selected_by == "alpha"
        return ArmSpec("transfer", self.shop.settings.alpha if by_alpha else len(self.tickets))

    def recipe(self, learning_rate: float) -> Recipe:
        """How this cell trains whatever it trains."""
        from .training import Recipe  # with transformers, which takes seconds

        sizes = {name: getattr(self.shop.settings, name) for name in ("steps", "batch_size", "micro_batch_size")}
        return Recipe(pad_token_id=self.shop.pad_token_id, **sizes, learning_rate=learning_rate, seed=self.seed)

    def train(
        self,
        spec: ArmSpec,
        token_ids: Tensor,
        learning_rate: float,
        progress: ProgressCallback,
        witness: Witness | None = None,
    ) -> TrainedRows:
        """Train rows of the original model for an arm; interrupted, it goes on from a checkpoint."""
        from .training import train_rows

        return train_rows(
            self.shop.model,
            token_ids,
            self.shop.train_features,
            self.recipe(learning_rate),
            output=self.shop.settings.output_role,
            checkpoints=self.home(spec).checkpoints(str(spec)),
            progress=progress,
            witness=witness,
            say=self.shop.console.note,
        )

    def train_in_place(
        self, spec: ArmSpec, model: Any, learning_rate: float, progress: ProgressCallback, belongs_to: Any = None
    ) -> list[float]:
        """Train whatever is trainable in ``model``; with ``belongs_to``, what it is, from a checkpoint if need be."""
        from .training import Checkpoints, train_parameters

        features, recipe, saver = self.shop.train_features, self.recipe(learning_rate), None
        if belongs_to is not None:
            folder = self.home(spec).checkpoints(str(spec))
            saver = Checkpoints(folder, (str(spec), recipe, belongs_to, features), say=self.shop.console.note)
        return train_parameters(model, features, recipe, saver=saver, progress=progress)

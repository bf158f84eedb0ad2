"""One language and one training seed of an experiment, and what its arms share."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json
from kslottery_fast.base.options import Selector
from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.tickets.evidence import Evidence, Witness
from kslottery_fast.tickets.selected_rows import SelectedRows
from kslottery_fast.tickets.selectors import row_order, row_values
from kslottery_fast.tickets.tickets import Tickets

from . import contribution
from .console import ProgressCallback
from .run_folder import RunFolder
from .specs import ArmSpec
from .trained import TrainedRows
from .workshop import Workshop

if TYPE_CHECKING:
    from .training import Recipe

EMBED = ArmSpec("embed")
UNTUNED = ArmSpec("untuned")
UNTRAINED = ("frequency", "random")
"""Selectors that need no Embed Tuning."""


class Cell:
    """One language and one training seed.

    ``folder`` holds the stages of this cell, and ``shop.folder`` those that all seeds of the language share.

    Parameters
    ----------
    shop : Workshop
        The corpus and the model of the language.
    code : str
        The code of the language.
    seed : int
        The training seed.
    """

    def __init__(self, shop: Workshop, code: str, seed: int) -> None:
        self.shop, self.code, self.seed = shop, code, seed
        self.folder: RunFolder = shop.folder.view(f"{seed}.")

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence that Embed Tuning left, by which rows are chosen."""
        return Evidence.load(self.stage(EMBED))

    def _evidence_for(self, selector: str, spec: ArmSpec) -> Evidence:
        """What the choice of an arm's rows reads. See :meth:`.arms.Tune.reads_embed`."""
        return self._counted if selector in UNTRAINED and isinstance(spec.size, int) else self.evidence

    @cached_property
    def _counted(self) -> Evidence:
        """What is known of the rows without Embed Tuning: how often they are read. Everything else is 0."""
        counts = self.shop.counts
        ids, table = counts.nonzero().squeeze(1), self.shop.base_table()
        zeros = torch.zeros(len(ids), dtype=torch.float64)
        return Evidence(ids, zeros.long(), zeros, zeros, counts[ids], *table.shape)

    @cached_property
    def tuned(self) -> TrainedRows:
        """The rows after Embed Tuning."""
        return TrainedRows.load(self.stage(EMBED))

    @cached_property
    def contributions(self) -> RowContributions:
        """What each row of Embed Tuning accounts for. Its stage exists if an arm of the experiment needs it."""
        return contribution.load(self.folder.stage_path(contribution.STAGE))

    @cached_property
    def tickets(self) -> Tickets:
        """The rows that alpha selects, or the ``top_k`` rows of largest D if it selects none."""
        found = self.evidence.table().tickets(**self.shop.settings.selection)
        if len(found) == 0:
            raise InputError("Embed Tuning moved no row; raise the learning rate or the number of steps")
        return found

    def home(self, spec: ArmSpec) -> RunFolder:
        """The folder of an arm's stages. All seeds share the stages of an arm that does not depend on the seed."""
        return self.folder if spec.facts.seeded else self.shop.folder

    def stage(self, spec: ArmSpec) -> Path:
        """The folder of an arm's own stage."""
        return self.home(spec).stage_path(str(spec))

    @property
    def corpus_stage(self) -> str:
        """The name of the stage with the corpus."""
        return self.shop.folder.prefix + "corpus"

    @property
    def embed_stage(self) -> str:
        """The name of the stage with Embed Tuning."""
        return self.folder.prefix + str(EMBED)

    def record(self, spec: ArmSpec) -> dict[str, object]:
        """The record of a finished arm, which holds ``rows`` and ``trained_parameters``."""
        return dict(read_json(self.stage(spec) / "arm.json"))

    def coverage(self, spec: ArmSpec) -> float | None:
        """The share of the training tokens whose rows a finished arm changes. None if it changes other parameters."""
        rows = self.record(spec)["rows"]
        if not rows:
            return None if rows is None else 0.0
        changed = TrainedRows.load(self.stage(spec)).token_ids
        seen = self.evidence.frequency
        return int(seen[torch.isin(self.evidence.token_ids, changed)].sum()) / int(seen.sum())

    def size(self, spec: ArmSpec) -> int:
        """How many rows an arm takes. An alpha may select none."""
        if spec.size == "active":
            return len(self.evidence)
        if spec.size == "tickets":
            return len(self.tickets)
        if spec.size == "enough":
            return len(self.contributions.enough(contribution.ENOUGH))
        if isinstance(spec.size, float):
            settings = self.shop.settings
            return self.evidence.significant(spec.size, settings.method, settings.correction)
        assert isinstance(spec.size, int), "arms with a size get one when they are parsed"
        return spec.size

    def order(self, selector: str, draw: int = 0, evidence: Evidence | None = None) -> Tensor:
        """The token ids of all rows that a selector ranks, best first. int64 [n]."""
        evidence = self.evidence if evidence is None else evidence
        worth, seed = self.contributions if selector == "contribution" else None, self.draw_seed(draw)
        return evidence.token_ids[row_order(evidence, selector, contributions=worth, seed=seed)]

    def choose(self, selector: str, spec: ArmSpec) -> Tensor:
        """The token ids that a selector chooses for an arm, best first. int64 [k], fewer if there are not k to copy."""
        k, ids = self.size(spec), self.order(selector, spec.draw, self._evidence_for(selector, spec))
        if k > len(ids) and spec.facts.trains:
            raise InputError(
                f"arm {spec} asks for {k:,} rows, but only {len(ids):,} rows can be chosen by {selector} "
                f"({self.code}, seed {self.seed}); ask for fewer"
            )
        ids = ids[:k]
        # The order of rows changes the rounding of their gradient norm. This draw is trained in the order of the table.
        return ids.sort().values if selector == "random" and spec.size == "tickets" else ids

    def selected(self, selector: Selector, spec: ArmSpec) -> SelectedRows:
        """The rows that a selector chooses for an arm, with what they were ranked by."""
        worth = self.contributions if selector == "contribution" else None
        ids = self.choose(selector, spec)
        evidence = self._evidence_for(selector, spec)
        values = row_values(evidence, selector, contributions=worth)
        return SelectedRows(ids, values[torch.searchsorted(evidence.token_ids, ids)], selector, evidence.vocab_size)

    def draw_seed(self, draw: int) -> int:
        """The seed of what an arm draws at random. Draw 0 has the training seed itself."""
        if draw == 0:
            return self.seed
        return int(np.random.SeedSequence((self.seed, draw)).generate_state(1)[0])

    def own_tickets(self) -> ArmSpec:
        """The tickets that certificate and interpretation are about, as an arm."""
        by_alpha = self.tickets.selected_by == "alpha"
        return ArmSpec("transfer", self.shop.settings.alpha if by_alpha else len(self.tickets))

    def steps(self, spec: ArmSpec) -> int:
        """The number of updates of an arm that trains."""
        settings = self.shop.settings
        return spec.steps or (settings.tuning_steps if spec.facts.tunes else None) or settings.steps

    def recipe(self, spec: ArmSpec, learning_rate: float) -> "Recipe":
        """How an arm of this cell is trained. Embed Tuning and the frozen arms have an optimizer of their own."""
        from .training import Recipe  # slow: imports transformers

        settings = self.shop.settings
        recipe = Recipe(
            pad_token_id=self.shop.pad_token_id,
            steps=self.steps(spec),
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size,
            learning_rate=learning_rate,
            seed=self.seed,
        )
        if not spec.facts.stage1:
            return recipe
        return replace(recipe, beta2=settings.stage1_beta2, eps=settings.stage1_eps, lazy=settings.stage1_lazy)

    def train(
        self,
        spec: ArmSpec,
        token_ids: Tensor,
        learning_rate: float,
        progress: ProgressCallback,
        witness: Witness | None = None,
    ) -> TrainedRows:
        """Train rows of the original model for an arm, from its checkpoint if there is one."""
        from .training import train_rows

        return train_rows(
            self.shop.model,
            token_ids,
            self.shop.train_features,
            self.recipe(spec, learning_rate),
            output=self.shop.settings.output_role,
            checkpoints=self.home(spec).checkpoints(str(spec)),
            progress=progress,
            witness=witness,
            say=self.shop.console.note,
        )

    def train_in_place(
        self, spec: ArmSpec, model: Any, learning_rate: float, progress: ProgressCallback, belongs_to: Any = None
    ) -> list[float]:
        """Train all trainable parameters of ``model``.

        ``belongs_to`` says what is trained. Without it the training keeps no checkpoint.
        """
        from .training import Checkpoints, train_parameters

        features, recipe, saver = self.shop.train_features, self.recipe(spec, learning_rate), None
        if belongs_to is not None:
            folder = self.home(spec).checkpoints(str(spec))
            saver = Checkpoints(folder, (str(spec), recipe, belongs_to, features), say=self.shop.console.note)
        return train_parameters(model, features, recipe, saver=saver, progress=progress)

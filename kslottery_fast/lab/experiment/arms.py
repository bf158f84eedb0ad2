"""The arms of an experiment. Each makes a model from the original one, and ``ARMS`` lists them.

The facts that are known before an arm is made are in :mod:`.specs`. The stage of an arm holds ``arm.json``, which
counts rows and trained numbers, and the files from which the model can be made again.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors
from kslottery_fast.base.options import Selector
from kslottery_fast.evaluation.encoding import encode_prompt
from kslottery_fast.integrations.peft_adapters import LORA, PREFIX, AdapterKind, original_again
from kslottery_fast.rows.adapter_file import save_adapter
from kslottery_fast.tickets.evidence import Witness

from .base_model import name_base_model
from .cell import UNTRAINED, Cell
from .console import ProgressCallback
from .specs import FACTS, ArmSpec, parse_arm
from .trained import TrainedRows


class Arm:
    """How one model of an experiment is made.

    ``label``, ``sized``, ``trains`` and ``seeded`` are those of :class:`~.specs.ArmFacts`. ``kind`` is the kind of work
    for :class:`~.console.Forecast`.

    Parameters
    ----------
    name : str
        A key of :data:`~.specs.FACTS`.
    """

    kind = "training"
    _reads_embed = True

    def __init__(self, name: str) -> None:
        self.name, facts = name, FACTS[name]
        self.label, self.sized, self.trains, self.seeded = facts.label, facts.sized, facts.trains, facts.seeded

    def reads_embed(self, spec: ArmSpec) -> bool:
        """Whether :meth:`make` reads the stage of Embed Tuning."""
        return self._reads_embed

    def make(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
        """Make the model, and write ``arm.json`` and what :meth:`wearing` needs into the folder of the stage."""
        raise NotImplementedError

    def wearing(self, cell: Cell, folder: Path) -> AbstractContextManager[Any]:
        """The model of a finished stage, inside the block. After it the original model is as it was."""
        raise NotImplementedError

    def spent(self, folder: Path) -> None:
        """Remove what is too large to keep. Called when the arm is scored, possibly more than once."""


def _record(folder: Path, spec: ArmSpec, rows: int | None, trained: int, **more: Any) -> None:
    write_json(folder / "arm.json", {"arm": str(spec), "rows": rows, "trained_parameters": trained, **more})


def made_as(folder: Path) -> ArmSpec:
    """The arm that was trained in a finished stage. For a search it is the candidate that was kept."""
    record = read_json(folder / "arm.json")
    return parse_arm(record.get("kept", record["arm"]), default_size=1)


class RowArm(Arm):
    """A model that differs from the original one in some rows of the embedding table."""

    def rows(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> TrainedRows | None:
        """The rows, or None for the original model."""
        raise NotImplementedError

    def make(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
        found = self.rows(cell, spec, folder, progress)
        if found is None:
            _record(folder, spec, 0, 0)
        else:
            found.save(folder)
            _record(folder, spec, len(found.token_ids), found.rows.numel() if self.trains else 0)

    def wearing(self, cell: Cell, folder: Path) -> AbstractContextManager[Any]:
        empty = read_json(folder / "arm.json")["rows"] == 0
        return cell.shop.wearing(None if empty else TrainedRows.load(folder))


class Untuned(RowArm):
    """The original model."""

    kind = "none"
    _reads_embed = False

    def rows(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
        return


class EmbedTuning(RowArm):
    """Trains every row of the active vocabulary. Other arms choose their rows by the evidence that it leaves."""

    _reads_embed = False

    def rows(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> TrainedRows:
        shop, settings = cell.shop, cell.shop.settings
        steps = cell.steps(spec)
        witness = Witness(shop.base_table(), steps)
        active = shop.counts.nonzero().squeeze(1)
        tuned = cell.train(spec, active, spec.learning_rate or settings.learning_rate, progress, witness)
        evidence = witness.evidence(tuned.token_ids, tuned.rows, shop.counts, steps)
        evidence.save(folder)
        shop.console.say(evidence.table().tickets(**settings.selection, note=shop.console.note).summary())
        return tuned


CHOSEN = {
    "ks": "the rows of largest D",
    "frequency": "the rows of the most frequent tokens",
    "random": "random rows of the active vocabulary",
    "l2": "the rows of largest L2 shift in Embed Tuning",
    "gradient": "the rows of largest gradients in Embed Tuning",
    "contribution": "the rows that account for most of the fall of the loss in Embed Tuning",
}
"""Which rows each selector chooses."""


class ChosenRows(RowArm):
    """An arm about some rows.

    Parameters
    ----------
    name : str
        A key of :data:`~.specs.FACTS`.
    selector : str
        How the rows are chosen, a key of :data:`CHOSEN`.
    """

    def __init__(self, name: str, selector: str) -> None:
        super().__init__(name)
        self.selector = selector


class Tune(ChosenRows):
    """Trains the chosen rows of the original model, with everything else frozen."""

    def reads_embed(self, spec: ArmSpec) -> bool:
        """Whether the rows, or their number, follow from Embed Tuning."""
        return self.selector not in UNTRAINED or not isinstance(spec.size, int)

    def make(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
        super().make(cell, spec, folder, progress)
        if self.selector != "random" and read_json(folder / "arm.json")["rows"]:
            chosen = cell.selected(cast("Selector", self.selector), spec)
            chosen.with_texts(cell.shop.loaded.tokenizer).save(folder / "selected.json")
            loaded = cell.shop.loaded
            with self.wearing(cell, folder) as model:
                save_adapter(model, folder / "adapter", base_model_name_or_path=loaded.hub_id)
            name_base_model(folder / "adapter", loaded)

    def rows(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> TrainedRows | None:
        ids = cell.choose(self.selector, spec)
        rate = spec.learning_rate or cell.shop.settings.tuning_learning_rate
        return cell.train(spec, ids, rate, progress) if len(ids) else None


class Transfer(ChosenRows):
    """Copies the chosen rows from the embed-tuned model, or all if there are fewer. Nothing is trained."""

    kind = "none"

    def rows(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> TrainedRows | None:
        ids = cell.choose(self.selector, spec)
        if isinstance(spec.size, int) and len(ids) < spec.size:
            cell.shop.console.note(f"arm {spec} copies all {len(ids):,} rows that can be chosen by {self.selector}")
        return cell.tuned.only(ids.sort().values) if len(ids) else None


class Frozen(ChosenRows):
    """Embed Tuning of all active rows except the chosen ones, the ablation of the paper."""

    def rows(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> TrainedRows:
        active, frozen = cell.evidence.token_ids, cell.choose(self.selector, spec)
        rate = spec.learning_rate or cell.shop.settings.learning_rate
        if len(frozen) == 0 and rate == cell.shop.settings.learning_rate and spec.steps is None:
            return cell.tuned
        rest = active[~torch.isin(active, frozen)]
        if len(rest) == 0:
            raise InputError(f"arm {spec} freezes all {len(active):,} active rows, so nothing is left to train")
        return cell.train(spec, rest, rate, progress)


class Noise(Transfer):
    """Moves each chosen row as far as Embed Tuning moved it, in a random direction."""

    def rows(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> TrainedRows | None:
        tuned = super().rows(cell, spec, folder, progress)
        if tuned is None:
            return None
        before = cell.shop.base_table()[tuned.token_ids]
        return TrainedRows(
            tuned.token_ids, before + norm_matched_noise(tuned.rows - before, cell.draw_seed(spec.draw)), []
        )


def norm_matched_noise(change: Tensor, seed: int) -> Tensor:
    """Rows in random directions with the norms of the rows of ``change``, float32 [k, d]."""
    noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * (change.double().norm(dim=1) / noise.norm(dim=1))[:, None]).float()


class FullTuning(Arm):
    """Trains all parameters. The weights are removed once the arm is scored, and made again if they are needed."""

    kind = "training.full"
    _reads_embed = False
    default_rate = 5e-5

    def make(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
        model = cell.shop.model
        with original_again(model):
            losses = self._train(cell, spec, model, progress)
            weights = dict(model.named_parameters())
            write_safetensors(folder / "weights.safetensors", weights)
        write_json(folder / "losses.json", losses)
        _record(folder, spec, None, sum(parameter.numel() for parameter in weights.values()))

    @contextlib.contextmanager
    def wearing(self, cell: Cell, folder: Path) -> Iterator[Any]:
        model, file = cell.shop.model, folder / "weights.safetensors"
        with original_again(model):
            if file.exists():
                weights = read_safetensors(file)
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        parameter.copy_(weights[name])
            else:  # removed after an earlier score; a search or a later comparison may need them again
                self._train(cell, made_as(folder), model, lambda *_: None)
            yield model

    def _train(self, cell: Cell, spec: ArmSpec, model: Any, progress: ProgressCallback) -> list[float]:
        model.requires_grad_(True)
        # No checkpoints: with the optimizer's state each would be as large as three models.
        return cell.train_in_place(spec, model, spec.learning_rate or self.default_rate, progress)

    def spent(self, folder: Path) -> None:
        """Remove the weights, which are as large as the model."""
        (folder / "weights.safetensors").unlink(missing_ok=True)


class Adapter(Arm):
    """An adapter of PEFT that trains about as many numbers as SIZE rows have."""

    def __init__(self, name: str, adapter: AdapterKind) -> None:
        super().__init__(name)
        self.adapter, self.kind = adapter, f"training.{name}"

    def make(self, cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
        budget = cell.size(spec) * cell.evidence.dimension
        if not budget:
            _record(folder, spec, 0, 0)
            return
        prompt = encode_prompt(cell.shop.loaded.tokenizer, cell.shop.examples("train")[0].prompt)
        torch.manual_seed(cell.seed)  # PEFT draws the adapter's first weights
        with self.adapter.attached(cell.shop.model, budget, prompt) as (adapter, plan):
            rate = spec.learning_rate or self.adapter.default_rate
            losses = cell.train_in_place(spec, adapter, rate, progress, belongs_to=(budget, plan))
            trained = sum(parameter.numel() for parameter in adapter.parameters() if parameter.requires_grad)
            self.adapter.save(adapter, folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # an empty form of PEFT that names a local path
        name_base_model(folder / "adapter", cell.shop.loaded)
        write_json(folder / "losses.json", losses)
        _record(folder, spec, None, trained, budget=budget, **plan)

    def wearing(self, cell: Cell, folder: Path) -> AbstractContextManager[Any]:
        if read_json(folder / "arm.json")["rows"] == 0:
            return contextlib.nullcontext(cell.shop.model)
        return self.adapter.loaded(cell.shop.model, folder / "adapter")


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Untuned("untuned"),
        EmbedTuning("embed"),
        FullTuning("full"),
        Tune("partial", "ks"),
        Transfer("transfer", "ks"),
        Tune("frequency", "frequency"),
        Transfer("transfer-frequency", "frequency"),
        Tune("random", "random"),
        Transfer("transfer-random", "random"),
        Tune("l2", "l2"),
        Tune("gradient", "gradient"),
        Tune("contribution", "contribution"),
        Transfer("transfer-l2", "l2"),
        Transfer("transfer-gradient", "gradient"),
        Transfer("transfer-contribution", "contribution"),
        Frozen("frozen", "ks"),
        Frozen("frozen-frequency", "frequency"),
        Noise("noise", "ks"),
        Adapter("lora", LORA),
        Adapter("prefix", PREFIX),
    )
}
"""Every arm by the name that ``--arms`` takes."""

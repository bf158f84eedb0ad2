"""What a TicketTrainer gives away: ``save_model`` and uploads to the Hub hold an adapter with its card."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import transformers
from torch import nn

from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.adapter_format import CONFIG_FILE
from kslottery_fast.rows.attach import has_rows

from .trainer_adapter import complete_card, write_adapter
from .trainer_checkpoint import ROWS_FILE

if TYPE_CHECKING:
    _Trainer = transformers.Trainer
else:
    _Trainer = object

_CARD = "README.md"


class AdapterWriter(_Trainer):
    """The part of a TicketTrainer that writes adapters. Models without rows are written as the Trainer does it."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains, as a checkpoint has it, and the rows as an adapter that PEFT loads."""
        # The Trainer itself calls this for checkpoints, with a folder, and for uploads, without one.
        if self._gives_rows and self.args.should_save and (output_dir is None or not _internal_call):
            folder = Path(output_dir or self.args.output_dir or ".")
            try:
                self._write_adapter(folder)
            except InputError as error:
                if output_dir is None and _internal_call:
                    raise
                warn_caller(f"{folder} holds {ROWS_FILE} and no adapter: {error}")
        super().save_model(output_dir, _internal_call)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository on the Hub, unless there would be nothing to upload."""
        if self._gives_rows and self.is_world_process_zero():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    write_adapter(self._whole_model, Path(folder))
                except InputError as error:
                    raise InputError(
                        f"push_to_hub uploads the rows as an adapter, and they cannot be one: {error}"
                    ) from None
        super().init_hf_repo(token, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        pushes = self.args.hub_strategy != "end" and (self.args.hub_always_push or not busy)
        if pushes and self._gives_rows and self.is_world_process_zero():
            self._write_adapter(Path(self.args.output_dir or "."))
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Complete the card of the adapter. Where no adapter was written, the Trainer writes its own card."""
        folder = Path(self.args.output_dir or ".")
        if not self._gives_rows or not (folder / CONFIG_FILE).is_file():
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            datasets = kwargs.get("dataset_tags") or kwargs.get("dataset")
            names = {name: kwargs.get(name) for name in ("language", "license", "tags")}
            complete_card(folder / _CARD, {}, datasets=datasets, **names)

    @property
    def _whole_model(self) -> nn.Module:
        return cast(nn.Module, self.accelerator.unwrap_model(self.model))

    @property
    def _gives_rows(self) -> bool:
        return self.model is not None and has_rows(self._whole_model)

    def _write_adapter(self, folder: Path) -> None:
        write_adapter(self._whole_model, folder)
        complete_card(folder / _CARD, _last_numbers(self.state.log_history))


def _last_numbers(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the last training loss and the numbers of the last evaluation, without their running times."""
    numbers = dict[str, float]()
    for entry in history:
        for name, value in entry.items():
            timed = name.endswith(("_runtime", "_per_second"))
            if isinstance(value, (int, float)) and not timed and (name == "loss" or name.startswith("eval_")):
                numbers[name] = value
    return numbers

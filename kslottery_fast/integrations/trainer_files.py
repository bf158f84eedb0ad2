"""The files of a TicketTrainer: checkpoints hold what trains, ``save_model`` and uploads to the Hub an adapter."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import transformers
from torch import nn

from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_text
from kslottery_fast.rows.adapter_format import CONFIG_FILE
from kslottery_fast.rows.adapter_hub import name_repository
from kslottery_fast.rows.attach import has_rows

from .trainer_adapter import complete_card, write_adapter
from .trainer_checkpoint import ROWS_FILE, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    _Trainer = transformers.Trainer
else:
    _Trainer = object


class TicketFiles(_Trainer):
    """The part of a TicketTrainer that writes and reads files. It leaves a model without rows to the Trainer."""

    _tokenizer: Any = None

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

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository on the Hub, unless there would be nothing to upload."""
        if self._gives_rows and self.is_world_process_zero():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    write_adapter(self._whole_model, Path(folder), self._tokenizer)
                except InputError as error:
                    raise InputError(
                        f"push_to_hub uploads the rows as an adapter, and they cannot be one: {error}"
                    ) from None
        super().init_hf_repo(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        pushes = self.args.hub_strategy != "end" and (self.args.hub_always_push or not busy)
        if pushes and self._gives_rows and self.is_world_process_zero():
            folder = Path(self.args.output_dir or ".")
            self._write_adapter(folder)
            name_repository(folder / "README.md", str(self.hub_model_id))
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Complete the card of the adapter. Where no adapter was written, the Trainer writes its own card."""
        folder = Path(self.args.output_dir or ".")
        if not self._gives_rows or not (folder / CONFIG_FILE).is_file():
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            datasets = kwargs.get("dataset_tags") or kwargs.get("dataset")
            names = {name: kwargs.get(name) for name in ("language", "license", "tags")}
            complete_card(folder / "README.md", datasets=datasets, **names)
            if self.hub_model_id is not None:
                name_repository(folder / "README.md", self.hub_model_id)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not has_rows(model):
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(model, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        # The Trainer would pickle its arguments. Nothing reads them back, so JSON is enough.
        write_text(folder / "training_args.json", self.args.to_json_string() + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model if model is None else model)
        if not has_rows(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_checkpoint(model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not has_rows(model):
            super()._load_best_model()
        else:
            load_checkpoint(model, str(self.state.best_model_checkpoint))

    @property
    def _whole_model(self) -> nn.Module:
        return cast(nn.Module, self.accelerator.unwrap_model(self.model))

    @property
    def _gives_rows(self) -> bool:
        return self.model is not None and has_rows(self._whole_model)

    def _write_adapter(self, folder: Path) -> None:
        write_adapter(self._whole_model, folder, self._tokenizer, _last_numbers(self.state.log_history))


def _last_numbers(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the last training loss and the numbers of the last evaluation, without their running times."""
    numbers = dict[str, float]()
    for entry in history:
        for name, value in entry.items():
            timed = name.endswith(("_runtime", "_per_second"))
            if isinstance(value, (int, float)) and not timed and (name == "loss" or name.startswith("eval_")):
                numbers[name] = value
    return numbers

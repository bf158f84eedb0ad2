"""Resuming an interrupted training from its last checkpoint, with the same bits as an uninterrupted one.

A checkpoint is the folder ``checkpoint-N/`` of the Trainer, and in it ``complete.json``, which is written last. After a
kill, an unfinished checkpoint lacks this file and is passed over. The file holds a key of the training and the digests
of the other files. A checkpoint with another key belongs to another training, and one with other digests is damaged.
Both are passed over too.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kslottery_fast.base.arguments import check_path
from kslottery_fast.base.cache import file_sha256
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors

STEPS, SECONDS = 25, 60.0
"""A checkpoint is due after this many steps and this much time, whichever takes longer."""

_COMPLETE, _WITNESS, _EARLIER = "complete.json", "witness.safetensors", "earlier.json"


class Kept(Protocol):
    """An observer of a training whose state is kept with the checkpoints."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return what it has seen so far."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from such a state."""


class Checkpoints(TrainerCallback):
    """Makes and finds the checkpoints of one training.

    Parameters
    ----------
    folder : str or path
        A folder for this training alone, which is also the ``output_dir`` of the Trainer.
    belongs_to : object
        Everything that the numbers of the training depend on, as values that JSON can hold. Versions and the number of
        threads are added.
    witness : Kept, optional
        An observer whose state is kept with the checkpoints.
    clock : callable
        Returns the time in seconds.
    say : callable
        Is called with a sentence that says which checkpoint is passed over, and why. The default warns.

    Raises
    ------
    TypeError
        ``folder`` is not a str or path.

    Examples
    --------
    >>> checkpoints = Checkpoints("no/such/folder", {"seed": 0})
    >>> print(checkpoints.resume())
    None
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        belongs_to: Any,
        witness: Kept | None = None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = warn_caller,
    ) -> None:
        self.folder = check_path(folder, "folder")
        self.witness, self.clock, self.say = witness, clock, say
        made_with = torch.__version__, transformers.__version__, torch.get_num_threads()
        self.key = hashlib.sha256(json.dumps([belongs_to, made_with], default=str).encode()).hexdigest()
        self.started = self.saved_at = clock()
        self.saved_step = 0

    def resume(self) -> str | None:
        """Return the checkpoint to continue from, or None. All other checkpoints are removed."""
        found = max(filter(self._ours, self._all()), key=_step, default=None)
        self._remove_all_but(found)
        (self.folder / _EARLIER).unlink(missing_ok=True)
        if found is None:
            return None
        seconds = read_json(found / _COMPLETE)["seconds"]
        write_json(self.folder / _EARLIER, seconds)
        self.started -= seconds
        self.saved_step = _step(found)
        if self.witness is not None:
            self.witness.restore(read_safetensors(found / _WITNESS))
        return str(found)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask the Trainer for a checkpoint when one is due."""
        late = self.clock() - self.saved_at >= SECONDS and state.global_step - self.saved_step >= STEPS
        if late and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Add the state of the witness and the record of completeness, then remove the older checkpoint."""
        folder = self.folder / f"checkpoint-{state.global_step}"
        if self.witness is not None:
            write_safetensors(folder / _WITNESS, self.witness.state())
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        record = {"key": self.key, "seconds": self.clock() - self.started, "files": _digests(folder)}
        write_json(folder / _COMPLETE, record)
        self.saved_step, self.saved_at = state.global_step, self.clock()
        self._remove_all_but(folder)

    def _all(self) -> list[Path]:
        return [path for path in self.folder.glob("checkpoint-*") if path.is_dir()]

    def _ours(self, path: Path) -> bool:
        if not (path / _COMPLETE).exists():
            return False
        why = "it is damaged"
        try:
            record = read_json(path / _COMPLETE)
            if record["seconds"] >= 0 and record["files"] == _digests(path):
                if record["key"] == self.key:
                    return True
                why = "it was made with other settings or versions, or with another number of threads"
        except (InputError, OSError, LookupError, TypeError):
            pass
        self.say(f"{path}: this checkpoint is passed over, since {why}")
        return False

    def _remove_all_but(self, kept: Path | None) -> None:
        for path in self._all():
            if path != kept:
                shutil.rmtree(path)


def seconds_spent(folder: Path) -> float:
    """Return how long the earlier attempts took that the last one continued.

    Parameters
    ----------
    folder : Path
        The folder of the training.

    Returns
    -------
    float
        Seconds. 0 if the last attempt started from the beginning.
    """
    return float(read_json(folder / _EARLIER)) if (folder / _EARLIER).exists() else 0.0


def _digests(checkpoint: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in checkpoint.iterdir() if path.name != _COMPLETE}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])

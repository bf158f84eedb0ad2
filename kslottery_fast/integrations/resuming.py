"""An interrupted training goes on from its last checkpoint, bit for bit.

A checkpoint is Trainer's own, ``checkpoint-N/``, and ``complete.json`` in it, written last: what a kill left half-done
has none and is passed over. It names what it belongs to and the digests of the other files; another training starts
from the beginning, and what is damaged is passed over, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from transformers import TrainerCallback

from kslottery_fast.base.cache import file_sha256
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors

STEPS, SECONDS = 25, 60.0
"""A checkpoint is due after as many steps and as much time, whichever takes longer."""

_COMPLETE, _WITNESS, _EARLIER = "complete.json", "witness.safetensors", "earlier.json"


class Kept(Protocol):
    """What looks on while something trains, and goes on where it was."""

    def state(self) -> dict[str, torch.Tensor]:
        """What it has seen so far."""

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take that up."""


class Checkpoints(TrainerCallback):
    """Makes and finds the checkpoints of one training.

    Parameters
    ----------
    folder : Path
        Of this training alone; also Trainer's ``output_dir``.
    belongs_to : object
        Everything that its numbers depend on, as JSON takes it; versions and the number of threads join it.
    witness : Kept, optional
        Is kept with the checkpoints.
    clock : callable
        Seconds.
    say : callable
        Is told which checkpoint is passed over, and why.
    """

    def __init__(
        self,
        folder: Path,
        belongs_to: Any,
        witness: Kept | None = None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.folder, self.witness, self.clock, self.say = folder, witness, clock, say
        made_with = torch.__version__, transformers.__version__, torch.get_num_threads()
        self.key = hashlib.sha256(json.dumps([belongs_to, made_with], default=str).encode()).hexdigest()
        self.started = self.saved_at = clock()
        self.saved_step = 0

    def resume(self) -> str | None:
        """The checkpoint to go on from, if there is one; every other one is removed."""
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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask Trainer for a checkpoint when one is due."""
        late = self.clock() - self.saved_at >= SECONDS and state.global_step - self.saved_step >= STEPS
        if late and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Trainer has written its part; add ours, then what says that it is whole, and let the older one go."""
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
    """How long those attempts took that the last one went on from; 0 where it began anew."""
    return float(read_json(folder / _EARLIER)) if (folder / _EARLIER).exists() else 0.0


def _digests(checkpoint: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in checkpoint.iterdir() if path.name != _COMPLETE}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])

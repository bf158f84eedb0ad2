"""Checkpoints of a training that is under way: what an interrupted one goes on from, bit for bit.

A checkpoint is Trainer's own, ``checkpoint-N/``, and ``complete.json`` in it, written last: what a kill left half-done
has none and is passed over. It names what it belongs to; another training starts from the beginning.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kslottery_fast.base.files import read_json, read_safetensors, write_json, write_safetensors

from .evidence import Witness
from .run_folder import COMPLETE, seconds_spent

STEPS, SECONDS = 25, 60.0
"""A checkpoint is due after as many steps and as much time, whichever takes longer."""

_WITNESS = "witness.safetensors"


class Checkpoints(TrainerCallback):
    """Makes and finds the checkpoints of one training, in a ``folder`` of its own.

    ``belongs_to``: everything that its numbers depend on, as JSON takes it; ``witness``: is kept with them.
    """

    def __init__(
        self, folder: Path, belongs_to: Any, witness: Witness | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.witness, self.clock = folder, witness, clock
        self.key = hashlib.sha256(json.dumps(belongs_to, default=str).encode()).hexdigest()
        self.started = self.saved_at = clock()
        self.saved_step = 0

    def resume(self) -> str | None:
        """The checkpoint to go on from, if there is one; every other one is removed."""
        found = max(filter(self._ours, self._all()), key=_step, default=None)
        self._remove_all_but(found)
        if found is None:
            return None
        self.started -= seconds_spent(self.folder)
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
        write_json(folder / COMPLETE, {"key": self.key, "seconds": self.clock() - self.started})
        self.saved_step, self.saved_at = state.global_step, self.clock()
        self._remove_all_but(folder)

    def _all(self) -> list[Path]:
        return [path for path in self.folder.glob("checkpoint-*") if path.is_dir()]

    def _ours(self, path: Path) -> bool:
        return (path / COMPLETE).exists() and read_json(path / COMPLETE)["key"] == self.key

    def _remove_all_but(self, kept: Path | None) -> None:
        for path in self._all():
            if path != kept:
                shutil.rmtree(path)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])

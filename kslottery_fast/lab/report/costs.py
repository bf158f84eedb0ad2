"""What an arm costs in time and memory, by itself and with the Embed Tuning that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kslottery_fast.lab.experiment.arms import ARMS, ChosenRows, Transfer
from kslottery_fast.lab.experiment.cell import EMBED, Cell
from kslottery_fast.lab.experiment.plan import SCORE
from kslottery_fast.lab.experiment.settings import ArmSpec

SHOWN_BY_EMBED_TUNING = ("ks", "l2", "gradient")
"""Selectors that go by what Embed Tuning did; the others go by counts or by chance."""


def costs(spec: ArmSpec, cells: Sequence[Cell]) -> dict[str, Any]:
    """Seconds of every seed and peaks of memory of a scored arm; ``cells`` are its own.

    ``making`` the arm, alone and ``from_scratch``: with the Embed Tuning that its rows come from or are chosen by;
    and ``scoring`` it. A peak is None where the system could not tell that of a stage.
    """
    made = [cell.home(spec).record(str(spec)) for cell in cells]
    scored = [cell.home(spec).record(str(spec) + SCORE) for cell in cells]
    before = [cell.folder.record(str(EMBED)) for cell in cells] if needs_embed_tuning(spec) else []
    seconds = {name: [stage["seconds"] for stage in stages] for name, stages in (("making", made), ("scoring", scored))}
    seconds["from_scratch"] = [
        own + (before[place]["seconds"] if before else 0) for place, own in enumerate(seconds["making"])
    ]
    peaks = {"making": made, "from_scratch": [*made, *before], "scoring": scored}
    return {
        "needs_embed_tuning": bool(before),
        "seconds": seconds,
        "peak_memory_mb": {name: _peak(stages) for name, stages in peaks.items()},
    }


def needs_embed_tuning(spec: ArmSpec) -> bool:
    """Whether an arm takes its rows from Embed Tuning, or chooses them by what Embed Tuning showed.

    A size that is given as alpha does not count: the same arm can be asked for by a number of rows.

    >>> [needs_embed_tuning(ArmSpec(name, 18)) for name in ("partial", "transfer-frequency", "frequency", "lora")]
    [True, True, False, False]
    """
    arm = ARMS[spec.name]
    return isinstance(arm, Transfer) or (isinstance(arm, ChosenRows) and arm.selector in SHOWN_BY_EMBED_TUNING)


def _peak(stages: Sequence[Mapping[str, Any]]) -> int | None:
    peaks = [stage["environment"] for stage in stages]
    if any(peak["peak_memory_of"] != "stage" for peak in peaks):
        return None
    return max(int(peak["peak_memory_mb"]) for peak in peaks)

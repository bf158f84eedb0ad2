"""What the arms of a finished experiment cost: time and memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from kslottery_fast.lab.experiment import contribution
from kslottery_fast.lab.experiment.arms import ARMS, ChosenRows, Transfer
from kslottery_fast.lab.experiment.cell import EMBED, Cell
from kslottery_fast.lab.experiment.scoring import SCORE
from kslottery_fast.lab.experiment.specs import ArmSpec


def costs(spec: ArmSpec, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the time and memory that a scored arm took.

    Parameters
    ----------
    spec : ArmSpec
        The arm.
    cells : sequence of Cell
        Those of the arm, one for each seed.

    Returns
    -------
    dict
        ``needs_embed_tuning``; ``seconds`` of every seed and ``peak_memory_mb``, each for ``making`` the arm alone, for
        making it ``from_scratch`` (with the Embed Tuning that its rows come from or are chosen by, and with measuring
        the contributions that they are chosen by) and for ``scoring`` it. Making an arm that searches
        its learning rate includes all of its trainings. A size given as alpha or "enough" does not count as chosen,
        because the same arm can be given by a number of rows. A peak is None if the system could not measure that of a
        stage.
    """
    needs = needs_embed_tuning(spec)
    made = [[cell.home(one).record(str(one)) for one in (*spec.candidates, spec)] for cell in cells]
    scored = [cell.home(spec).record(str(spec) + SCORE) for cell in cells]
    stages = [str(EMBED)] * needs + [contribution.STAGE] * spec.facts.contributions
    before = [[cell.folder.record(stage) for stage in stages] for cell in cells]
    making, earlier = ([sum(stage["seconds"] for stage in seed) for seed in found] for found in (made, before))
    seconds = {
        "making": making,
        "scoring": [stage["seconds"] for stage in scored],
        "from_scratch": [own + others for own, others in zip(making, earlier, strict=True)],
    }
    peaks = {
        "making": [*itertools.chain(*made)],
        "from_scratch": [*itertools.chain(*made, *before)],
        "scoring": scored,
    }
    return {
        "needs_embed_tuning": needs,
        "seconds": seconds,
        "peak_memory_mb": {name: _peak(stages) for name, stages in peaks.items()},
    }


def needs_embed_tuning(spec: ArmSpec) -> bool:
    """Say whether an arm takes its rows from Embed Tuning or chooses them by the results of Embed Tuning.

    Parameters
    ----------
    spec : ArmSpec
        The arm.

    Returns
    -------
    bool

    Examples
    --------
    >>> needs_embed_tuning(ArmSpec("partial", 18)), needs_embed_tuning(ArmSpec("frequency", 18))
    (True, False)
    """
    arm = ARMS[spec.name]
    # The other selectors use counts or chance.
    chosen = isinstance(arm, ChosenRows) and arm.selector in ("ks", "l2", "gradient", "contribution")
    return isinstance(arm, Transfer) or chosen


def _peak(stages: Sequence[Mapping[str, Any]]) -> int | None:
    peaks = [stage["environment"] for stage in stages]
    if any(peak["peak_memory_of"] != "stage" for peak in peaks):
        return None
    return max(int(peak["peak_memory_mb"]) for peak in peaks)

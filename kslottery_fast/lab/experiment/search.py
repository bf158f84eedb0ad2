"""The search for an arm's learning rate, on the validation pairs.

An arm such as ``partial@18:lr=0.01_0.03`` trains at each of its rates. Each training is the stage of the arm that has
this one rate. It therefore resumes from its own checkpoint, is not repeated once it is finished, and is shared by all
arms that name it. The stage of the search is a copy of the candidate with the lowest NLL on the validation pairs.
"""

import shutil
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import DivergedError
from kslottery_fast.base.files import write_json

from .arms import ARMS
from .cell import Cell
from .console import ProgressCallback
from .scoring import SCORE, load_nll, validation_nll
from .specs import ArmSpec, rate_text, shown_rates


def make_candidate(cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
    """Make the arm of one learning rate. If its training diverges, the stage says so and the search goes on."""
    try:
        ARMS[spec.name].make(cell, spec, folder, progress)
    except DivergedError as error:
        record = {"arm": str(spec), "rows": None, "trained_parameters": 0, "diverged": str(error)}
        write_json(folder / "arm.json", record)


def keep_best(cell: Cell, spec: ArmSpec, folder: Path, progress: ProgressCallback) -> None:
    """Copy the candidate with the lowest NLL on the validation pairs; of equal ones, that with the lowest rate.

    ``arm.json`` gets ``kept``, the arm that was copied, and ``learning_rates``, all rates with their NLL in nats per
    token. The NLL is None for a training that diverged. ``learning_rates`` is empty if alpha selected no row.

    Raises
    ------
    DivergedError
        Every training diverged.
    """
    if cell.record(spec.candidates[0])["rows"] == 0:  # then no rate trains anything
        found, kept = [], spec.candidates[0]
    else:
        found = [_nll(cell, one, place, len(spec.rates), progress) for place, one in enumerate(spec.candidates)]
        best = min((value for value in found if value is not None), default=None)
        if best is None:
            raise DivergedError(
                f"arm {shown_rates(str(spec))}: its training diverged at every learning rate; give lower ones"
            )
        kept = spec.candidates[found.index(best)]
    source = cell.stage(kept)
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("stage.json"))
    rates = [{"rate": rate, "validation_nll": value} for rate, value in zip(spec.rates, found, strict=False)]
    record: dict[str, Any] = {**cell.record(kept), "arm": str(spec), "kept": str(kept), "learning_rates": rates}
    write_json(folder / "arm.json", record)


def _nll(cell: Cell, candidate: ArmSpec, place: int, among: int, progress: ProgressCallback) -> float | None:
    """The NLL of a candidate on the validation pairs. None if it diverged."""
    if "diverged" in cell.record(candidate):
        return None
    home, scored = cell.home(candidate), str(candidate) + SCORE
    if home.finished(scored):  # as an arm of its own
        return load_nll(home.stage_path(scored)).interval.value
    examples = len(cell.shop.examples("validation"))

    def on_validation(done: int, _: int) -> None:
        progress(place * examples + done, among * examples, f"learning rate {rate_text(candidate.learning_rate or 0)}")

    try:
        with ARMS[candidate.name].wearing(cell, cell.stage(candidate)) as model:
            return validation_nll(cell.shop, model, on_validation).interval.value
    except DivergedError:  # its rows are finite, and its predictions are not
        return None


def refuse_diverged(cell: Cell, spec: ArmSpec) -> None:
    """Raise DivergedError if the training of an arm diverged when it was a candidate of a search."""
    why = cell.record(spec).get("diverged")
    if why is not None:
        raise DivergedError(f"arm {spec} diverged when its learning rate was searched ({why}); leave it out")

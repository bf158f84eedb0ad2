"""Which optimizer of stage 1 makes the KS test select rows that matter?

    python -m benchmarks.stage1_study --output runs/stage1 --target es,ca

Each setting of eps, beta2, language and seed is Embed Tuning once, and then Partial Transfer of the rows that each
selector puts first. Every score is the NLL per target token of the validation pairs. The test pairs are not scored.
A finished setting has a JSON file in the output folder, and the same command goes on after an interruption.

In the table, "cover" is the share of the training tokens whose rows are tickets. "rare" and "often" say how far the
rows of the rarest and of the most frequent tokens moved, in learning rates.

The rule that chooses the default was written before the first run. Its numbers are means over the languages and seeds
in which no setting is missing. Settings whose Embed Tuning is more than ``TOLERANCE`` nats worse than the best are
out. Of the others, the one with the lowest NLL of the KS rows wins, in the mean of 18 and 64 rows.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.base.memory import trimming_forward
from kslottery_fast.evaluation.evaluate import nll
from kslottery_fast.lab.experiment.cell import EMBED, Cell
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.jobs import work_through
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.run_folder import open_run_folder
from kslottery_fast.lab.experiment.settings import ExperimentSettings, RunSettings
from kslottery_fast.lab.experiment.trained import TrainedRows
from kslottery_fast.lab.experiment.workshop import Workshop
from kslottery_fast.tickets.evidence import SELECTORS

from .reporting import line

TOLERANCE = 0.02
SIZES = (18, 64)
SELECTED = ("ks", "l2", "frequency")

EPS, BETA2 = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3), (0.999, 0.98, 0.95, 0.9)
"""The default grid."""

COLUMNS = [
    ("eps", 6),
    ("beta2", 5),
    ("where", -9),
    ("Embed", 6),
    ("tickets", 7),
    ("cover", 5),
    ("rare", 5),
    ("often", 5),
]
COLUMNS += [(f"{selector}@{size}", len(f"{selector}@{size}")) for selector in SELECTED for size in SIZES]


@dataclass(frozen=True)
class Setting:
    """One training of stage 1."""

    eps: float
    beta2: float
    target: str
    seed: int

    def __str__(self) -> str:
        return f"{self.target}.{self.seed}.eps={self.eps!r}.beta2={self.beta2!r}"

    def of(self, base: RunSettings) -> ExperimentSettings:
        """The experiment of this setting: Embed Tuning alone."""
        run = replace(base, target=self.target, stage1_eps=self.eps, stage1_beta2=self.beta2)
        return ExperimentSettings(run, ("embed",), (self.seed,), (self.target,), effects=0, paraphrase=False)


def grid(eps: Sequence[float], beta2: Sequence[float], targets: Sequence[str], seeds: Sequence[int]) -> list[Setting]:
    """All settings. Those that differ from the first eps and beta2 in one number alone come first.

    >>> [(one.eps, one.beta2) for one in grid([1, 2], [3, 4], ["es"], [0])]
    [(1, 3), (2, 3), (1, 4), (2, 4)]
    """
    pairs = [(one, beta2[0]) for one in eps] + [(eps[0], one) for one in beta2[1:]]
    pairs += [(one, other) for one in eps[1:] for other in beta2[1:]]
    return [Setting(*pair, target, seed) for seed in seeds for pair in pairs for target in targets]


class Study:
    """Runs settings one after the other, with one loaded model.

    Parameters
    ----------
    base : RunSettings
        The settings that all share.
    output : Path
        The folder of the study.
    console : RunConsole
        Where progress is written.
    """

    def __init__(self, base: RunSettings, output: Path, console: RunConsole) -> None:
        self.base, self.output, self.console = base, output, console
        self.first: Workshop | None = None
        self.untuned: dict[str, float] = {}

    def result(self, setting: Setting) -> dict[str, Any]:
        """What a setting showed. It is run first if it is not finished."""
        path = self.output / f"{setting}.json"
        if not path.exists():
            write_json(path, self._run(setting))
        return read_json(path)

    def _run(self, setting: Setting) -> dict[str, Any]:
        self.console.say(str(setting))
        experiment = setting.of(self.base)
        with open_run_folder(self.output / "folders" / str(setting), experiment.binding, experiment.grid) as folder:
            made = Experiment(experiment, folder, self.console)
            (cell,) = made.cells.values()
            cell.shop.neighbour, self.first = self.first, self.first or cell.shop
            jobs = [job for job in made.jobs() if job.stage.rpartition(".")[2] in ("corpus", "embed")]
            work_through(jobs, folder, self.console, " ".join(["stage1_study", *sys.argv[1:]]))
            tickets = cell.evidence.table().significant(self.base.alpha, self.base.method, self.base.correction)
            return {
                **asdict(setting),
                "untuned": self._untuned(cell),
                "embed": validation_nll(cell, cell.tuned),
                "tickets": len(tickets),
                "cover": cover(cell, torch.tensor(tickets, dtype=torch.int64)),
                **shifts(cell),
                "transfer": {f"{name}@{size}": transfer(cell, name, size) for name in SELECTED for size in SIZES},
                "settings": experiment.binding,
                **cell.folder.record(str(EMBED)),
            }

    def _untuned(self, cell: Cell) -> float:
        if cell.code not in self.untuned:
            self.untuned[cell.code] = validation_nll(cell, None)
        return self.untuned[cell.code]


def validation_nll(cell: Cell, rows: TrainedRows | None) -> float:
    """NLL per target token of the validation pairs, by the original model with other rows."""
    shop = cell.shop
    with shop.wearing(rows) as model, trimming_forward(model):
        found = nll(model, shop.loaded.tokenizer, shop.examples("validation"), **shop.settings.measuring)
    return found.interval.value


def cover(cell: Cell, token_ids: Tensor) -> float:
    """The share of the training tokens that some rows cover."""
    seen = cell.evidence.frequency
    return int(seen[torch.isin(cell.evidence.token_ids, token_ids)].sum()) / int(seen.sum())


def shifts(cell: Cell) -> dict[str, float]:
    """How far rare and frequent rows moved: the root mean square over their numbers, in learning rates.

    ``rare`` is the median of the rows that occur once in the training examples (or as seldom as any), and ``often``
    that of the 18 most frequent ones.
    """
    evidence, rate = cell.evidence, cell.shop.settings.learning_rate
    moved = evidence.l2 / evidence.dimension**0.5 / rate
    often = SELECTORS["frequency"](evidence, cell.seed)[: SIZES[0]]
    rare = evidence.frequency == evidence.frequency.min()
    return {"rare": float(moved[rare].median()), "often": float(moved[often].median())}


def transfer(cell: Cell, selector: str, size: int) -> dict[str, Any]:
    """Copy the rows that a selector puts first."""
    first = SELECTORS[selector](cell.evidence, cell.seed)[:size]
    ids = cell.evidence.token_ids[first].sort().values
    counts = cell.evidence.frequency[first].tolist()
    return {"nll": validation_nll(cell, cell.tuned.only(ids)), "cover": cover(cell, ids), "occurrences": counts}


def means(results: Sequence[Mapping[str, Any]]) -> dict[tuple[float, float], dict[str, float]]:
    """The numbers of each eps and beta2, in the mean of the cells (languages and seeds) in which none is missing."""
    cells: dict[tuple[str, int], dict[tuple[float, float], dict[str, float]]] = defaultdict(dict)
    for result in results:
        cells[result["target"], result["seed"]][result["eps"], result["beta2"]] = numbers(result)
    pairs = list(dict.fromkeys((result["eps"], result["beta2"]) for result in results))
    whole = [cell for cell in cells.values() if len(cell) == len(pairs)]
    return {
        pair: {name: fmean(cell[pair][name] for cell in whole) for name in whole[0][pair]} for pair in pairs if whole
    }


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result that stand in the table, by name."""
    transfers = {name: found["nll"] for name, found in result["transfer"].items()}
    return {**{name: result[name] for name in ("embed", "tickets", "cover", "rare", "often")}, **transfers}


def chosen(found: Mapping[tuple[float, float], Mapping[str, float]]) -> tuple[float, float]:
    """The eps and beta2 that the rule of this file chooses.

    >>> def of(embed, ks):
    ...     return {"embed": embed, "ks@18": ks, "ks@64": ks}
    >>> chosen({(1e-8, 0.999): of(1.73, 2.3), (1e-4, 0.999): of(1.70, 2.1), (1e-3, 0.999): of(1.8, 1.9)})
    (0.0001, 0.999)
    """
    best = min(values["embed"] for values in found.values())
    allowed = {pair: values for pair, values in found.items() if values["embed"] <= best + TOLERANCE}
    return min(allowed, key=lambda pair: fmean(allowed[pair][f"ks@{size}"] for size in SIZES))


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each result, the means, and the choice."""
    print(line([name for name, _ in COLUMNS], COLUMNS))
    for result in results:
        where = f"{result['target']}, {result['seed']}"
        print(_line(result["eps"], result["beta2"], where, numbers(result)))
    found = means(results)
    for (eps, beta2), values in found.items():
        print(_line(eps, beta2, "mean", values))
    if found:
        eps, beta2 = chosen(found)
        print(f"the rule chooses eps {eps:g} and beta2 {beta2:g}, of {len(found)} settings")


def _line(eps: float, beta2: float, where: str, values: Mapping[str, float]) -> str:
    counted = [f"{values['embed']:.3f}", f"{values['tickets']:.0f}", f"{values['cover']:.0%}"]
    counted += [f"{values[name]:.2f}" for name in ("rare", "often")]
    scores = [f"{values[name]:.3f}" for name in values if "@" in name]
    return line([f"{eps:g}", f"{beta2:g}", where, *counted, *scores], COLUMNS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/stage1"), help="folder of the study (%(default)s)")
    parser.add_argument("--target", default="es,ca", help="languages (%(default)s)")
    parser.add_argument("--seed", default="0", help="seeds of the training (%(default)s)")
    parser.add_argument("--eps", default=",".join(map(str, EPS)), help="(%(default)s)")
    parser.add_argument("--beta2", default=",".join(map(str, BETA2)), help="(%(default)s)")
    parser.add_argument("--model", default=RunSettings.model, help="(%(default)s)")
    parser.add_argument("--corpus", default=RunSettings.corpus, help="(%(default)s)")
    parser.add_argument("--table", action="store_true", help="run nothing; print the table of what is finished")
    asked = parser.parse_args(arguments)
    numbers_of = {name: [float(one) for one in getattr(asked, name).split(",")] for name in ("eps", "beta2")}
    settings = grid(**numbers_of, targets=asked.target.split(","), seeds=[int(one) for one in asked.seed.split(",")])
    study = Study(RunSettings(model=asked.model, corpus=asked.corpus), asked.output, RunConsole())
    if asked.table:
        settings = [setting for setting in settings if (asked.output / f"{setting}.json").exists()]
    print_table([study.result(setting) for setting in settings])
    return 0


if __name__ == "__main__":
    sys.exit(main())

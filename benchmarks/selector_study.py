"""Which selector finds the rows that are worth most, and what is the most that any selector could reach?

    python -m benchmarks.selector_study --folder runs/compare-1 --output runs/selectors

Reads the Embed Tuning of a finished experiment, or of one folder of ``benchmarks.stage1_study``, and writes nothing
into it. The rows that a selector puts first are copied into the original model (Partial Transfer, no training), which
is scored on the validation pairs. A finished measurement has a JSON file in the output folder, and the same command
goes on after an interruption.

Greedy selection adds one row after the other, each as the one of the candidates that lowers the NLL of the validation
pairs most. The candidates are the rows of largest contribution. It shows what a selector of so few rows can reach, but
it has seen the pairs that it is scored on. So the rows of greedy, contribution and frequency are also scored on the
test pairs. This is the only use of these.

In the table, "gain" is the share of Embed Tuning's fall in NLL, "cover" the share of the training tokens whose rows are
copied, and "worth" the share of the training loss's fall that the rows account for. "CPU s" is the processor time that
the selection took beyond Embed Tuning.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.base.memory import trimming, trimming_forward
from kslottery_fast.evaluation.contribution import row_contributions
from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.evaluation.encoding import Example, collate
from kslottery_fast.evaluation.likelihood import TargetNll, nll
from kslottery_fast.lab.experiment.cell import Cell
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.run_folder import RunFolder, read_header
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.tickets.evidence import SELECTORS

from .greedy_rows import Remembered, better_of, greedy
from .selector_rankings import BY_CONTRIBUTION, BY_EVIDENCE, aligned, best_first, wasserstein
from .selector_tables import print_differences, print_greedy, print_scores
from .stage1_study import cover

SIZES = (18, 64, 200)
FEWER = (320, 160)
"""Numbers of examples that contributions are also computed from, to see how few are enough."""

RANDOM = tuple(f"random-{draw}" for draw in range(5))
NAMES = (
    *BY_EVIDENCE,
    "wasserstein",
    *BY_CONTRIBUTION,
    *(f"{kind}-{number}" for number in FEWER for kind in BY_CONTRIBUTION),
    *RANDOM,
    "greedy",
)
"""All selectors, in the order of the table."""


def open_cell(folder: Path, target: str | None = None, seed: int | None = None) -> Cell:
    """Return one language and seed of an experiment whose Embed Tuning is finished. Its folder is only read.

    Parameters
    ----------
    folder : Path
        The folder of the experiment.
    target : str, optional
        The code of the language, by default the first one.
    seed : int, optional
        The training seed, by default the first one.

    Raises
    ------
    InputError
        The folder holds no such experiment, or its Embed Tuning is not finished.
    """
    settings = ExperimentSettings.recorded(read_header(folder), folder)
    cells = Experiment(settings, RunFolder(folder), RunConsole(quiet=True)).cells
    found = [cell for (code, its), cell in cells.items() if target in (None, code) and seed in (None, its)]
    if not found:
        raise InputError(f"{folder} has no such language and seed; it has {', '.join(f'{c}, {s}' for c, s in cells)}")
    if not found[0].folder.finished("embed"):
        raise InputError(f"{folder}: Embed Tuning is not finished; run the command that made the folder again")
    return found[0]


class Study:
    """Rankings of one Embed Tuning and their scores, each kept in a file.

    Parameters
    ----------
    cell : Cell
        The language and seed.
    output : Path
        The folder of the study.
    say : callable
        Called with a line about each step.
    points : int
        Points of the path on which contributions are measured.
    candidates, part : int
        How many rows greedy selection chooses from, and how many of the validation pairs it looks at first.
    candidates_by : str
        The selector that puts these candidates first.
    """

    def __init__(
        self,
        cell: Cell,
        output: Path,
        say: Callable[[str], None],
        *,
        points: int = 8,
        candidates: int = 100,
        part: int = 24,
        candidates_by: str = "contribution",
    ) -> None:
        self.cell, self.output, self.say, self.points = cell, output, say, points
        self.candidates, self.part, self.candidates_by = candidates, part, candidates_by
        folder = str(cell.folder.path.resolve())
        self._bind("study", {"folder": folder, "target": cell.code, "seed": cell.seed, "points": points})

    def _bind(self, name: str, about: dict[str, Any]) -> None:
        """Refuse an output folder in which something else was done under this name."""
        if (kept := self._kept(name, lambda: about)) != about:
            raise InputError(f"output {self.output} belongs to {kept}, not to {about}; give another --output")

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` returns, or what it returned when it was called before."""
        path = self.output / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        return dict(read_json(path))

    def score(self, rows: Tensor | None, examples: Sequence[Example]) -> TargetNll:
        """The NLL of the original model with these rows copied from the tuned one. None copies no row."""
        shop = self.cell.shop
        copied = None if rows is None or not len(rows) else self.cell.tuned.only(rows.sort().values)
        with shop.wearing(copied) as model, trimming_forward(model):
            return nll(model, shop.loaded.tokenizer, examples, **shop.settings.measuring)

    def measured(self, name: str, size: int = 0, split: str = "validation") -> dict[str, Any]:
        """The score of the rows that a selector puts first, or of "untuned" and "embed"."""

        def measure() -> dict[str, Any]:
            rows = {"untuned": None, "embed": self.cell.tuned.token_ids}.get(name)
            if size:
                rows = self.ranking(name, size)[:size]
            found = self.score(rows, self.cell.shop.examples(split))
            self.say(f"{name} {size or ''} {split}: {found.interval:.3f}")
            facts = {"selector": name, "size": size, "split": split, "nll": found.to_dict()}
            return facts if rows is None else {**facts, "cover": cover(self.cell, rows), "token_ids": rows.tolist()}

        return self._kept(f"{name}@{size}.{split}" if size else f"{name}.{split}", measure)

    def ranking(self, name: str, size: int) -> Tensor:
        """The token ids of at least ``size`` rows, best first."""
        evidence = self.cell.evidence
        if name == "greedy":
            return torch.tensor(self.greedy(size))
        if name in RANDOM:
            return evidence.token_ids[SELECTORS["random"](evidence, RANDOM.index(name))]
        if name == "wasserstein":
            tuned = self.cell.tuned
            return best_first(evidence, wasserstein(self.cell.shop.base_table()[tuned.token_ids], tuned.rows))
        if name in BY_EVIDENCE:
            return best_first(evidence, BY_EVIDENCE[name](evidence))
        kind, examples = self._kind(name)
        contribution, error = aligned(evidence, self.contributions(examples))
        return best_first(evidence, BY_CONTRIBUTION[kind](contribution, error, evidence), ties=contribution)

    def _kind(self, name: str) -> tuple[str, int]:
        """The key of BY_CONTRIBUTION, and the number of examples."""
        kind, _, number = name.rpartition("-")
        every = len(self.cell.shop.train_features)
        return (kind, min(int(number), every)) if number.isdigit() else (name, every)

    def contributions(self, examples: int) -> RowContributions:
        """The contributions of all rows, computed from the first ``examples`` training examples."""
        path = self.output / f"contributions-{examples}.safetensors"

        def compute() -> dict[str, Any]:
            shop, tuned = self.cell.shop, self.cell.tuned
            chosen, size = shop.train_features[:examples], shop.settings.micro_batch_size
            found = row_contributions(
                shop.model,
                shop.base_table()[tuned.token_ids],
                tuned.rows,
                [collate(chosen[i : i + size], shop.pad_token_id) for i in range(0, examples, size)],
                token_ids=tuned.token_ids,
                points=self.points,
                output=shop.settings.output_role,
                measure_fall=False,
                seed=self.cell.seed,
                progress=trimming(lambda *_: None),
            )
            found.save(path)
            return {"examples": examples, "total": found.total}

        self._timed(path.stem, compute)
        return RowContributions.load(path)

    def worth(self, token_ids: Sequence[int]) -> float | None:
        """The share of the loss's fall that rows account for, by the contributions from the most examples so far."""
        numbers = [int(path.stem.rpartition("-")[2]) for path in self.output.glob("contributions-*.safetensors")]
        return self.contributions(max(numbers)).share(list(token_ids)) if numbers else None

    def _timed(self, name: str, make: Callable[[], dict[str, Any]]) -> float:
        """Call ``make`` once, and return the processor time that it took."""

        def timed() -> dict[str, Any]:
            started = time.process_time()
            made = make()
            spent = round(time.process_time() - started, 3)
            self.say(f"{name}: {spent:.1f} s of processor time, {made}")
            return {**made, "seconds": spent}

        return float(self._kept(name, timed)["seconds"])

    def seconds(self, name: str) -> float:
        """The processor time that a selection took beyond Embed Tuning. That of greedy includes earlier attempts."""
        if name == "greedy":
            return self.remembered.seconds
        if name.startswith("contribution"):
            return float(read_json(self.output / f"contributions-{self._kind(name)[1]}.json")["seconds"])
        return self._timed(f"ranking-{name}", lambda: {"rows": len(self.ranking(name, 1))})

    @cached_property
    def remembered(self) -> Remembered:
        """The NLL of rows on the validation pairs, or on the first of them."""
        examples = self.cell.shop.examples("validation")

        def nll_of(rows: tuple[int, ...], *, whole: bool) -> float:
            ids = torch.tensor(rows, dtype=torch.int64)
            return self.score(ids, examples if whole else examples[: self.part]).interval.value

        return Remembered(nll_of, self.output / "greedy-scores.json")

    def greedy(self, size: int) -> list[int]:
        """The rows that greedy selection chooses, or the first candidates if these are better."""
        options = {name: getattr(self, name) for name in ("candidates", "part", "candidates_by")}
        self._bind("greedy", options)

        def search() -> dict[str, Any]:
            candidates = self.ranking(self.candidates_by, self.candidates)[: self.candidates].tolist()
            chosen = greedy(self.remembered, candidates, size)
            return {"chosen": chosen, "rows": better_of(self.remembered, chosen, candidates[:size])}

        return list(self._kept(f"greedy-search-{size}", search)["rows"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the experiment")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--target", help="code of the language (the first one)")
    parser.add_argument("--seed", type=int, help="training seed (the first one)")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of rows (%(default)s)")
    parser.add_argument("--only", default=",".join(NAMES), help="selectors (all: %(default)s)")
    parser.add_argument("--greedy-sizes", default="18", help="numbers of rows of greedy selection (%(default)s)")
    parser.add_argument(
        "--candidates-by", default="contribution", choices=NAMES[:-1], help="what greedy chooses from (%(default)s)"
    )
    asked = parser.parse_args(arguments)
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"--only names {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
    console = RunConsole()
    cell = open_cell(asked.folder, asked.target, asked.seed)
    study = Study(cell, asked.output, console.say, candidates_by=asked.candidates_by)
    ranked, sizes = [name for name in names if name != "greedy"], _integers(asked.sizes)
    for name in ("untuned", "embed"):
        study.measured(name)
    for name in ranked:
        for size in sizes:
            study.measured(name, size)
        study.seconds(name)
    print_scores(study, ranked, sizes)
    if "frequency" in ranked:
        print_differences(study, ranked, sizes)
    if "greedy" in names:
        print_greedy(study, ("greedy", asked.candidates_by, "frequency"), _integers(asked.greedy_sizes))
    return 0


def _integers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())

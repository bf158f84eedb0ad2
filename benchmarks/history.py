"""The ratios of all runs that were kept, one line a run in history.jsonl, and a picture of them.

    python -m benchmarks.history [--output FILE]    draw history.jsonl, into build/benchmarks/history.svg
    python -m benchmarks.history --add FILE ...     add the results that `--output` of a benchmark wrote

`make bench ARGS=--history` adds a line too. A picture has a panel for each ratio that has a target, and a line in it
for each machine, with the quartiles as a band. Only runs of the whole size are drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kslottery_fast.base.files import write_text

from .ks_workloads import PREFIX
from .records import name_of

HISTORY = Path(__file__).resolve().parent / "history.jsonl"
PICTURE = HISTORY.parents[1] / "build" / "benchmarks" / "history.svg"
DIGITS = 4  # of a ratio
COLUMNS = 4  # of the picture's panels

Line = dict[str, Any]
Panels = dict[tuple[str, str], dict[str, list[tuple[str, list[float]]]]]  # (row, ratio): machine: date, quartiles


def line_of(results: Mapping[str, Any]) -> Line:
    """What one run adds: when, where, which sources, and [median, lower, upper quartile] of every ratio.

    Results of format 1 have one number a ratio, which stands for all three.
    """
    about = results["machine"]
    return {
        "utc": about["utc"],
        "commit": about["commit"],
        "machine": about.get("gpu") or about["cpu"],
        "threads": about["threads"],
        "isa": about["isa"],
        "torch": about["torch"],
        "load": round(about["load"], 2),
        "quick": bool(results.get("quick") or about.get("dry_run")),
        "rows": {name_of(row): _ratios(row) for row in results["rows"] if row.get("ratios")},
        "targets": {name_of(row): row["targets"] for row in results["rows"] if row.get("targets") and "shape" in row},
    }


def _ratios(row: Mapping[str, Any]) -> dict[str, list[float]]:
    return {
        name: [_rounded(ratio[key]) for key in ("median", "low", "high")]
        if isinstance(ratio, Mapping)
        else [_rounded(ratio)] * 3
        for name, ratio in row["ratios"].items()
    }


def _rounded(value: float) -> float:
    """With DIGITS digits that count.

    >>> _rounded(1234.56), _rounded(0.00123456)
    (1235.0, 0.001235)
    """
    return float(f"{value:.{DIGITS}g}")


def add(results: Mapping[str, Any], path: Path = HISTORY) -> Path:
    """Add a run, unless it is there already. The file is replaced as a whole, in the order of time."""
    lines = read(path)
    new = line_of(results)
    if not any((each["utc"], each["machine"]) == (new["utc"], new["machine"]) for each in lines):
        lines.append(new)
    lines.sort(key=lambda each: each["utc"])
    write_text(path, "".join(json.dumps(each) + "\n" for each in lines))
    return path


def read(path: Path = HISTORY) -> list[Line]:
    """All runs. None if there is no file."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def panels(lines: Sequence[Line]) -> Panels:
    """What the picture shows: of each row and ratio with a target in any run, the runs of each machine in order.

    Adversarial rows of one op, shape and dtype share a panel, in which each run has the worst of them.
    """
    found: Panels = {}
    kept = [line for line in lines if not line["quick"]]
    judged = {(row, target) for line in kept for row, targets in line["targets"].items() for target in targets}
    groups: dict[tuple[str, str], set[str]] = {}
    for row, target in judged:
        groups.setdefault((_panel_of(row), ratio_of(target)), set()).add(row)
    for (panel, ratio), members in sorted(groups.items()):
        for line in kept:
            if values := [line["rows"][row][ratio] for row in members if ratio in line["rows"].get(row, {})]:
                machine = f"{line['machine']}, {line['threads']} threads"
                worst = (max if ratio.startswith("/") else min)(values)
                found.setdefault((panel, ratio), {}).setdefault(machine, []).append((line["utc"], worst))
    return found


def ratio_of(target: str) -> str:
    """The ratio of a target as it is written.

    >>> ratio_of("x scipy >= 1,200")
    'x scipy'
    """
    return target.rsplit(" ", 2)[0]


def _panel_of(row: str) -> str:
    """The title of a row's panel.

    >>> _panel_of("ks_statistics, 1,024 x 576 float32, adversarial: clusters")
    'ks_statistics, 1,024 x 576 float32, adversarial: the worst'
    """
    start, adversarial, _ = row.partition(PREFIX)
    return f"{start}{adversarial}the worst" if adversarial else row


def bound_of(lines: Sequence[Line], panel: str, ratio: str) -> float | None:
    """The newest target of a panel."""
    for line in reversed(lines):
        for row, targets in line["targets"].items():
            for target in targets:
                if (_panel_of(row), ratio_of(target)) == (panel, ratio):
                    return float(target.rsplit(" ", 1)[1].replace(",", ""))
    return None


def draw(lines: Sequence[Line], output: Path) -> None:
    """Write the picture. Its format follows from the name of the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = panels(lines)
    rows = max(1, math.ceil(len(shown) / COLUMNS))
    figure = Figure(figsize=(4.2 * COLUMNS, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    dates = sorted({date for series in shown.values() for runs in series.values() for date, _ in runs})
    machines = sorted({machine for series in shown.values() for machine in series})
    for place, ((row, ratio), series) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.set_title("\n".join(_folded(row)), fontsize=7)
        axes.set_ylabel(ratio, fontsize=7)
        axes.tick_params(labelsize=6)
        axes.set_xticks(range(len(dates)), [date[5:10] for date in dates])
        for machine, runs in series.items():
            color = f"C{machines.index(machine) % 10}"
            at = [dates.index(date) for date, _ in runs]
            median, low, high = zip(*(values for _, values in runs), strict=True)
            axes.plot(at, median, "o-", color=color, markersize=3, label=machine)
            axes.vlines(at, low, high, color=color, alpha=0.4, linewidth=4)
        highest = max(values[2] for runs in series.values() for _, values in runs)
        if (bound := bound_of(lines, row, ratio)) is not None:
            axes.axhline(bound, color="gray", linestyle="--", linewidth=0.8)
            highest = max(highest, bound)
        axes.set_ylim(0, 1.15 * highest)
    handles = {
        text: handle for axes in figure.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=7)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def _folded(text: str, width: int = 48) -> Iterator[str]:
    """A title in lines of at most `width` letters, if its words allow it.

    >>> list(_folded("ks_select, 32,000 x 4,096", width=16))
    ['ks_select,', '32,000 x 4,096']
    """
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def main() -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", type=Path, nargs="+", metavar="FILE", default=[], help="results to add first")
    parser.add_argument("--output", type=Path, metavar="FILE", default=PICTURE, help="an .svg or .png")
    parser.add_argument("--history", type=Path, metavar="FILE", default=HISTORY, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        for path in arguments.add:
            add(json.loads(path.read_text(encoding="utf-8")), arguments.history)
        lines = read(arguments.history)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: these are no results of a benchmark: {error!r}", file=sys.stderr)
        return 2
    if not lines:
        print(f"error: {arguments.history} has no runs; add one: make bench ARGS=--history", file=sys.stderr)
        return 2
    draw(lines, arguments.output)
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How loose is the sound bound on the logits?

    python -m benchmarks.certificate_bounds runs/es --sentences 8

For the tickets of a finished experiment, the rows that moved and were left out go back from their tuned to their
original values, all the way and small shares of it. For each share the table says at how many positions the bound
certifies the prediction, at how many the predictions agree, and the median of bound over actual change of the margin.
Positions that read no such row are left out of the ratio: their bound and their change are 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.evaluation.encoding import collate, encode
from kslottery_fast.evaluation.generation import inference
from kslottery_fast.evaluation.logit_bounds import MarginBounds, margin_bounds
from kslottery_fast.evaluation.logits import supervised_logits
from kslottery_fast.evaluation.reading import read_tokens
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.run_folder import RunFolder, read_header
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.trained import TrainedRows

SHARES = (1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)


def compared(found: MarginBounds, here: Tensor, there: Tensor, unread: Tensor) -> dict[str, float]:
    """Return how loose a bound is, from the logits [n, V] of both models.

    Parameters
    ----------
    found : MarginBounds
        The bound.
    here, there : Tensor
        The logits of the embed-tuned model and of the other one.
    unread : Tensor
        Whether a position reads no row that differs.
    """
    n = torch.arange(len(found))
    change, wide = (there - here).double(), ~unread
    actual = (change[n, found.predicted] - change[n, found.runner_up]).abs()
    # Below this, the change is the rounding of float32.
    known = wide & (actual > 1e-4)
    ratio = (found.bound / actual)[known]
    return {
        "certified": float(found.certified.double().mean()),
        "agree": float((there.argmax(-1) == found.predicted).double().mean()),
        "violated": int((actual[wide] > found.bound[wide] + 1e-3).sum()),
        "bound": float(found.bound[wide].median()) if wide.any() else 0.0,
        "ratio": float(ratio.median()) if known.any() else float("nan"),
    }


def measure(experiment: Experiment, sentences: int, shares: Sequence[float]) -> list[dict[str, float]]:
    """Measure the first language and training seed of a finished experiment."""
    cell = next(iter(experiment.cells.values()))
    shop, tuned = cell.shop, cell.tuned
    before = shop.base_table()[tuned.token_ids]
    left = (before != tuned.rows).any(dim=1) & ~torch.isin(tuned.token_ids, cell.tickets.token_ids)
    ids, original, after = tuned.token_ids[left], before[left], tuned.rows[left]
    features = [encode(shop.loaded.tokenizer, example) for example in shop.examples("test")[:sentences]]
    batches = [collate([feature], shop.pad_token_id) for feature in features]
    unread = ~read_tokens(batches).reads(ids)
    with shop.wearing(tuned) as model:
        here = _logits(model, batches)
        bounds = [margin_bounds(model, batches, ids, original, share=None if s == 1 else s) for s in shares]
    table = []
    for share, found in zip(shares, bounds, strict=True):
        rows = tuned.rows.clone()
        rows[left] = torch.lerp(after.double(), original.double(), share).float()
        with shop.wearing(TrainedRows(tuned.token_ids, rows, [])) as model:
            table.append({"share": share, **compared(found, here, _logits(model, batches), unread)})
    return table


def _logits(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    with inference(model):
        return torch.cat([supervised_logits(model, batch)[0].float() for batch in batches])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of `kslottery run` or `kslottery compare`")
    parser.add_argument("--sentences", type=int, default=8, help="how many sentences of the test split")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="shares of the way that rows go")
    options = parser.parse_args(arguments)
    settings = ExperimentSettings.recorded(read_header(options.folder), options.folder)
    experiment = Experiment(settings, RunFolder(options.folder), RunConsole(quiet=True))
    experiment.check_finished()
    print(f"{'share':>8}{'certified':>12}{'agree':>10}{'violated':>10}{'bound':>12}{'bound/actual':>14}")
    for row in measure(experiment, options.sentences, options.shares):
        print(
            f"{row['share']:>8g}{row['certified']:>12.1%}{row['agree']:>10.1%}{row['violated']:>10}"
            f"{row['bound']:>12.3g}{row['ratio']:>14.3g}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

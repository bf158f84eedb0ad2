"""Where does the time of an experiment's training go on this CPU?

    python -m benchmarks.experiment_step --threads 2
    python -m benchmarks.experiment_step --threads 1 --processes 2

A line has the time of forward and backward over the same micro-batches of Embed Tuning, for a dtype and an attention.
The contenders take turns. With several processes, all of them do the same at once, and the last column counts the
examples of all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.evaluation.encoding import collate
from kslottery_fast.evaluation.logits import supervised_logits
from kslottery_fast.integrations.batches import GroupedBatches
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.run_folder import open_run_folder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.workshop import Workshop
from kslottery_fast.rows.attach import attach_rows

from .measure import Contender, Timing, take_turns
from .reporting import duration, line

DTYPES, ATTENTIONS = ("float32", "bfloat16"), ("sdpa", "eager")
COLUMNS = [("dtype", -8), ("attention", -9), ("micro-batch", 11), ("examples/s", 10)]


def step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward of one micro-batch."""
    logits, targets = supervised_logits(model, batch)
    torch.nn.functional.cross_entropy(logits.float(), targets).backward()


def batches(shop: Workshop, number: int) -> list[dict[str, torch.Tensor]]:
    """The first micro-batches of a training."""
    features, size = shop.train_features, shop.settings.micro_batch_size
    order = list(GroupedBatches([len(feature["input_ids"]) for feature in features], size, shop.settings.seed))
    chosen = (order[first : first + size] for first in range(0, number * size, size))
    return [collate([features[i] for i in batch], shop.pad_token_id) for batch in chosen]


def contenders(base: RunSettings, number: int, folder: Path) -> Iterator[tuple[str, Contender]]:
    """A training step for every dtype and attention."""
    for dtype in DTYPES:
        settings = ExperimentSettings(replace(base, dtype=dtype), ("embed",), (0,), (base.target,))
        with open_run_folder(folder / dtype, settings.binding, settings.grid) as opened:
            shop = Workshop(settings.base, opened, RunConsole())
            model, data = shop.model, batches(shop, number)
            active = shop.counts.nonzero().squeeze(1)
        attach_rows(model, active)
        for attention in ATTENTIONS:
            yield f"{dtype} {attention}", Contender(partial(_turn, model, attention, data), scale=1 / number)


def _turn(model: Any, attention: str, data: list[dict[str, torch.Tensor]], turn: int) -> None:
    model.set_attn_implementation(attention)
    for batch in data:
        step(model, batch)


def measure(base: RunSettings, threads: int, number: int, turns: int) -> dict[str, Timing]:
    """Seconds of a micro-batch by dtype and attention."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        return take_turns(dict(contenders(base, number, Path(folder))), turns=turns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=RunSettings.model, help="(%(default)s)")
    parser.add_argument("--corpus", default=RunSettings.corpus, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a process (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes that run at once (%(default)s)")
    parser.add_argument("--micro-batches", type=int, default=15, help="(%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="(%(default)s)")
    asked = parser.parse_args(arguments)
    base = RunSettings(model=asked.model, corpus=asked.corpus)
    one = partial(measure, base, asked.threads, asked.micro_batches, asked.turns)
    if asked.processes == 1:
        found = [one()]
    else:
        # Spawned: torch's threads do not survive a fork.
        with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as pool:
            found = [future.result() for future in [pool.submit(one) for _ in range(asked.processes)]]
    print(f"{asked.processes} process(es) of {asked.threads} thread(s)")
    print(line([name for name, _ in COLUMNS], COLUMNS))
    for key in product(DTYPES, ATTENTIONS):
        medians = [timings[" ".join(key)].median for timings in found]
        rate = sum(base.micro_batch_size / seconds for seconds in medians)
        print(line([*key, duration(max(medians)), f"{rate:.1f}"], COLUMNS))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What would make a training step of few rows cheaper?

    python -m benchmarks.step_savings --dtype float32
    python -m benchmarks.step_savings --dtype bfloat16

All contenders make forward and backward of the same micro-batches, in turns:

- ``all rows``: Embed Tuning, every active row trains;
- ``18 rows``: the 18 most frequent tokens train;
- ``1 late row``: one token trains that occurs in no prompt's beginning, the least that a backward pass can need;
- ``shared beginning``: as "all rows", but the tokens with which every prompt begins go through the model once for a
  micro-batch, not once for each of its examples. Loss and gradients are compared with those of "all rows".

The table has seconds of processor time on one thread, because other processes disturb them less than wall time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.evaluation.generation import cache_keyword, cache_of
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.run_folder import open_run_folder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.workshop import Workshop
from kslottery_fast.lab.models.attention import quick_attention
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows

from .experiment_step import batches, step
from .reporting import duration, line

COLUMNS = [("contender", -16), ("micro-batch", 11), ("/ all rows", 10)]
Batch = dict[str, Tensor]


def common_beginning(features: Sequence[Any]) -> int:
    """How many tokens all examples begin with."""
    columns = zip(*(feature["input_ids"] for feature in features), strict=False)
    return next(place for place, tokens in enumerate(columns) if len(set(tokens)) > 1)


def shared_step(model: Any, batch: Batch, beginning: int) -> float:
    """The loss of a micro-batch after its backward pass, with the first tokens computed once for all examples."""
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    cache = cache_of(model.model(input_ids=ids[:1, :beginning], use_cache=True))
    cache.batch_repeat_interleave(len(ids))
    earlier = {cache_keyword(model.model): cache}
    found = model.model(input_ids=ids[:, beginning:], attention_mask=mask, use_cache=True, **earlier)
    wanted = labels[:, beginning + 1 :] >= 0
    logits = model.get_output_embeddings()(found.last_hidden_state[:, :-1][wanted])
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, beginning + 1 :][wanted])
    loss.backward()
    return float(loss.detach())


def trained_on(model: Any, ids: Tensor, run: Callable[[], None]) -> tuple[float, Tensor]:
    """Processor time of ``run`` while these rows train, and their gradient."""
    attach_rows(model, ids)
    try:
        started = time.process_time()
        run()
        seconds, rows = time.process_time() - started, get_rows(model)
        assert rows.rows.grad is not None, "every contender trains rows that the batches read"
        return seconds, rows.rows.grad[rows.token_ids.argsort()].clone()
    finally:
        detach_rows(model)


def measure(base: RunSettings, number: int, turns: int) -> dict[str, float]:
    """Median seconds of a micro-batch by contender."""
    torch.set_num_threads(1)
    settings = ExperimentSettings(base, ("embed",), (0,), (base.target,))
    with (
        tempfile.TemporaryDirectory() as folder,
        open_run_folder(Path(folder) / "run", settings.binding, settings.grid) as opened,
    ):
        shop = Workshop(base, opened, RunConsole())
        model, data, beginning = shop.model, batches(shop, number), common_beginning(shop.train_features)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in data) / number
        active, order = shop.counts.nonzero().squeeze(1), shop.counts.argsort(descending=True)
        late = torch.cat([batch["input_ids"][:, -1] for batch in data])[:1]
    print(f"{tokens:.0f} tokens in a micro-batch of {base.micro_batch_size}; all begin with the same {beginning}")

    def plain() -> None:
        for batch in data:
            step(model, batch)

    def shared() -> None:
        for batch in data:
            shared_step(model, batch, beginning)

    contenders = {
        "all rows": partial(trained_on, model, active, plain),
        "18 rows": partial(trained_on, model, order[:18], plain),
        "1 late row": partial(trained_on, model, late, plain),
        "shared beginning": partial(trained_on, model, active, shared),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with quick_attention(model):
        for _ in range(turns):
            gradients = {}
            for name, run in contenders.items():
                took, gradients[name] = run()
                seconds[name].append(took / number)
            off = (gradients["shared beginning"] - gradients["all rows"]).norm() / gradients["all rows"].norm()
            print(f"gradients of the shared beginning differ by {off:.1e} of their norm", flush=True)
    return {name: median(each) for name, each in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=RunSettings.model, help="(%(default)s)")
    parser.add_argument("--corpus", default=RunSettings.corpus, help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="(%(default)s)")
    parser.add_argument("--micro-batches", type=int, default=6, help="(%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="(%(default)s)")
    asked = parser.parse_args(arguments)
    found = measure(
        RunSettings(model=asked.model, corpus=asked.corpus, dtype=asked.dtype), asked.micro_batches, asked.turns
    )
    print(line([name for name, _ in COLUMNS], COLUMNS))
    for name, seconds in found.items():
        print(line([name, duration(seconds), f"{seconds / found['all rows']:.2f}"], COLUMNS))
    return 0


if __name__ == "__main__":
    sys.exit(main())

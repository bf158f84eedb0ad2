"""Variants of kernels that are compiled together, so that one run compares them: `--variants` of gpu_table.

An environment variable chooses a variant. The library reads it at every call, so contenders of one process can differ
in it. docs/gpu.md says what each variant is expected to bring.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from .measure import Contender, Timing
from .paired import Ratio
from .records import Record
from .workloads import Spec, Workload

PREFIX = "variant: "


@dataclass(frozen=True)
class Variant:
    """A value of an environment variable, and the ops whose rows it can change."""

    variable: str
    value: str
    ops: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float64")

    def __str__(self) -> str:
        return f"{self.variable}={self.value}"

    def concerns(self, spec: Spec) -> bool:
        """Whether a row may get faster or slower."""
        return spec.op in self.ops and spec.dtype_name in self.dtypes


KS_OPS = ("ks_select", "ks_select kernel", "ks_decide", "ks_statistics")
VARIANTS = (
    *(Variant("KSL_CUDA_VARIANT", name, KS_OPS, ("float32", "bfloat16")) for name in ("interval", "fast")),
    Variant("KSL_CUDA_COMPACTION", "kernel", ("ks_select",)),
    Variant("KSL_CUDA_ADAMW", "cluster", ("RowAdamW",)),
)


@contextlib.contextmanager
def chosen(variant: Variant) -> Iterator[None]:
    """Within this, the library uses the variant. Afterwards the variable is what it was."""
    before = os.environ.get(variant.variable)
    os.environ[variant.variable] = variant.value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variant.variable]
        else:
            os.environ[variant.variable] = before


def with_variants(spec: Spec, prepare: Callable[[], Workload], variants: tuple[Variant, ...] = VARIANTS) -> Workload:
    """The workload of a row, with one more contender for each variant that concerns it.

    Each variant is prepared as chosen, because a captured graph keeps what was chosen when it was captured.
    """
    workload = prepare()
    for variant in variants:
        if variant.concerns(spec):
            with chosen(variant):
                theirs = prepare()
            workload = _joined(workload, theirs, variant)
    return workload


def _joined(workload: Workload, theirs: Workload, variant: Variant) -> Workload:
    ours = theirs.contenders["ours"]

    def run(turn: int) -> object:
        with chosen(variant):
            return ours.run(turn)

    def agrees() -> bool:
        with chosen(variant):
            same = theirs.agrees is None or theirs.agrees()
        return same and (workload.agrees is None or workload.agrees())

    contenders = {**workload.contenders, f"{PREFIX}{variant}": Contender(run, ours.scale, ours.waits)}
    return replace(workload, contenders=contenders, agrees=workload.agrees and agrees)


def compared(timings: Mapping[str, Timing]) -> Record:
    """How many times as fast as the default each variant is, turn by turn."""
    ours = timings["ours"].seconds
    return {
        name.removeprefix(PREFIX): asdict(Ratio.of(ours, timing.seconds))
        for name, timing in timings.items()
        if name.startswith(PREFIX)
    }


def lines_of(record: Record) -> Iterator[str]:
    """What the table says below a row, a line for each variant."""
    for name, ratio in record["variants"].items():
        low, median, high = ratio["low"], ratio["median"], ratio["high"]
        yield f"    {name}: {median:.3f} times as fast as the default (quartiles {low:.3f} to {high:.3f})"

"""RowAdamW, row_adamw_ and row_embedding under pytest-benchmark."""

from . import row_workloads

SUITE = row_workloads.suite


def test_rows(time_ours, spec):
    time_ours(spec, row_workloads.prepare(spec))

"""What Nsight Compute prints of the metrics that it was asked for."""

from __future__ import annotations

import csv


def metrics_of(text: str) -> dict[str, float]:
    """The sums of the metrics over all kernels. Empty if the counters could not be read."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    sums: dict[str, float] = {}
    for row in csv.DictReader(lines[start:]):
        value = float(row["Metric Value"].replace(",", ""))
        sums[row["Metric Name"]] = sums.get(row["Metric Name"], 0.0) + value
    return sums

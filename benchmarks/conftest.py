"""`pytest benchmarks/ --benchmark-json=FILE` times this package's part of every row of the table. --quick times less.

Ratios to peers and to the memory floor need contenders that take turns in one run, which table.py does.
"""

from __future__ import annotations

import pytest

from .machine import pin


def pytest_addoption(parser):
    """Add --quick, which `python -m benchmarks.table` has too."""
    parser.addoption("--quick", action="store_true", help="smaller tables and fewer rounds")


def pytest_generate_tests(metafunc):
    """Give a benchmark the specs of its module's suite in their order, in which neighbours share their data."""
    specs = metafunc.module.SUITE(quick=metafunc.config.getoption("--quick")).specs
    metafunc.parametrize("spec", specs, ids=str)


@pytest.fixture
def time_ours(benchmark, request):
    """Measure one workload. The JSON says which one it is."""
    pin(2)

    def run(spec, workload):
        benchmark.group = f"{spec.op}, {spec.case}"
        benchmark.extra_info.update(
            op=spec.op, shape=spec.shape, dtype=spec.dtype_name, case=spec.case, note=workload.note
        )
        benchmark.extra_info["bytes"] = workload.bytes
        turn = iter(range(1 << 62))
        benchmark.pedantic(
            workload.contenders["ours"].run,
            setup=lambda: ((next(turn),), {}),
            rounds=3 if request.config.getoption("--quick") else 15,
            warmup_rounds=1,
        )

    return run

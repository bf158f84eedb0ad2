"""ks_select, ks_statistics and ks_2samp under pytest-benchmark."""

import pytest

from . import ks_workloads

SUITE = ks_workloads.suite


@pytest.mark.filterwarnings("ignore:no row:RuntimeWarning")  # one of the timed cases selects nothing
def test_ks(time_ours, spec):
    time_ours(spec, ks_workloads.prepare(spec))

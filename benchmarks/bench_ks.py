"""ks_select, ks_statistics and ks_2samp under pytest-benchmark."""

import pytest

from . import ks_workloads

SUITE = ks_workloads.suite


@pytest.mark.filterwarnings("ignore:no row:RuntimeWarning")  # the case where nothing is selected is one of those timed
def test_ks(time_ours, spec):
    time_ours(spec, ks_workloads.prepare(spec))

"""The faults that mutate.py plants, without planting them: that takes ten minutes."""

from __future__ import annotations

import mutate
import pytest

KERNELS = mutate.ROOT / "csrc" / "cuda"


@pytest.mark.parametrize(
    ("number", "fault"), list(enumerate(mutate.FAULTS, start=1)), ids=lambda value: str(value)[:60]
)
def test_a_fault_names_a_line_that_its_file_has_once(number, fault):
    assert fault.fits((KERNELS / fault.file).read_text()), f"fault {number}: {fault.line!r} in {fault.file}"


def test_a_fault_whose_line_is_gone_or_is_there_twice_does_not_fit():
    fault = mutate.Fault("any.cuh", "a + b;", "+", "-")
    assert fault.fits("c = a + b;")
    assert not fault.fits("c = a - b;")
    assert not fault.fits("c = a + b; d = a + b;")
    assert not fault._replace(old=" ").fits("c = a + b;")  # which of the two spaces?

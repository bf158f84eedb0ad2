"""Warnings point at the caller's line, whatever lies between that line and the package."""

from __future__ import annotations

import warnings

import torch

from kslottery_fast.base.caller import warn_caller


def test_a_warning_points_at_the_first_line_outside_of_the_package_and_its_libraries():
    source = "def f():\n    warn_caller('a', RuntimeWarning)\n"
    ours = {"__name__": "kslottery_fast.made_up", "warn_caller": warn_caller}
    exec(source, ours)  # a function of the package, which a library calls back through a decorator
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.no_grad()(ours["f"])()
    (warning,) = caught
    assert (warning.filename, warning.category) == (__file__, RuntimeWarning)


def test_each_line_warns_once_by_default():
    source = "def f():\n    warn_caller('a')\n"
    ours = {"__name__": "kslottery_fast.made_up", "warn_caller": warn_caller}
    exec(source, ours)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            ours["f"]()
        ours["f"]()
    assert len({warning.lineno for warning in caught}) == len(caught) == 2

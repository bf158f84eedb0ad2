"""The criterion for rows of any selector, on tables computed by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.certify import certificate_from
from kslottery_fast.evaluation.predictions import Predictions
from kslottery_fast.evaluation.selection_certificate import largest_left_out, selection_certificate
from kslottery_fast.ks import asymptotic_threshold

SENTENCE, TARGET = torch.tensor([0, 0, 1, 1]), torch.tensor([5, 6, 7, 8])
MARGIN = torch.tensor([0.9, 0.5, 0.3, 0.1], dtype=torch.float64)
TUNED = Predictions(TARGET, MARGIN, TARGET, SENTENCE)
OTHER = Predictions(torch.tensor([5, 9, 7, 9]), MARGIN, TARGET, SENTENCE)
ROWS = {"selected_by": "l2", "rows": 3, "dimension": 576}


def test_a_position_is_certified_if_its_half_margin_exceeds_the_largest_d_left_out():
    found = selection_certificate(TUNED, OTHER, largest_left_out=0.2, reads=torch.tensor([0, 1, 1, 1]).bool(), **ROWS)
    assert (found.level.tau, found.level.certified_positions, found.level.violations) == (0.2, 2, 1)
    assert (found.level.read_positions, found.level.read_violations) == (1, 0)
    assert found.agreement.positions.value == 0.5
    assert (found.positions, found.sentences) == (4, 2)
    assert "wrong at 50.0% of these, 25.0% certified by reading, agreement at 50.0%" in found.summary()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["level"]["tau"] == 0.2


def test_rows_that_alpha_chooses_are_certified_as_the_certificate_at_that_alpha_says():
    """And the level of other rows is the alpha whose tau is the largest D that they leave out."""
    tau = asymptotic_threshold(0.05, 576, 576)
    mine = selection_certificate(TUNED, OTHER, largest_left_out=tau, **ROWS)
    theirs = certificate_from(TUNED, OTHER, dimension=576, alphas=[0.05])
    assert mine.level.alpha == pytest.approx(0.05)
    assert mine.level.certified_positions == theirs.levels[0].certified_positions
    assert mine.level.violations == theirs.levels[0].violations
    assert mine.agreement == theirs.agreement
    for d in (0.02, 0.1, 0.3):
        alpha = selection_certificate(TUNED, OTHER, largest_left_out=d, **ROWS).level.alpha
        assert alpha == 1 if d == 0.02 else asymptotic_threshold(alpha, 576, 576) == pytest.approx(d)
    assert not math.isnan(selection_certificate(TUNED, OTHER, largest_left_out=1, **ROWS).level.alpha)


def test_the_largest_d_left_out_is_that_of_the_rows_that_were_not_selected():
    counts = {3: 10, 5: 4, 8: 2}
    assert largest_left_out(counts, torch.tensor([3]), 20) == 0.2
    assert largest_left_out(counts, torch.tensor([], dtype=torch.int64), 20) == 0.5
    assert largest_left_out(counts, torch.tensor([3, 5, 8]), 20) == 0


def test_bad_arguments_of_a_selection_certificate_are_refused():
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="expected a number from 0 to 1, as D is"):
            selection_certificate(TUNED, OTHER, largest_left_out=value, **ROWS)
    with pytest.raises(InputError, match=r"reads has the shape \[3\]: expected \[4\]"):
        selection_certificate(TUNED, OTHER, largest_left_out=0.1, reads=torch.ones(3).bool(), **ROWS)
    with pytest.raises(TypeError, match=r"reads is .*: expected a bool tensor"):
        selection_certificate(TUNED, OTHER, largest_left_out=0.1, reads=torch.ones(4), **ROWS)

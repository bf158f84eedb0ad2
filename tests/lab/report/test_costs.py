"""What a summary says about the cost of an arm."""

import pytest

from kslottery_fast.lab.experiment.specs import ArmSpec
from kslottery_fast.lab.report.costs import needs_embed_tuning


@pytest.mark.parametrize(
    ("name", "needs"), [("partial", True), ("transfer-frequency", True), ("frequency", False), ("lora", False)]
)
def test_an_arm_needs_the_embed_tuning_that_its_rows_come_from_or_are_chosen_by(name, needs):
    assert needs_embed_tuning(ArmSpec(name, 18)) == needs

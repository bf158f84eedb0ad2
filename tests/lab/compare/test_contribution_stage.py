"""The stage with the contributions of rows: when there is one, what it measures, and which rows arms take by it."""

import pytest
import torch

from kslottery_fast import row_contributions
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.evaluation.encoding import collate
from kslottery_fast.lab.experiment import contribution
from kslottery_fast.lab.experiment.arms import ARMS, ChosenRows
from kslottery_fast.lab.experiment.cell import Cell
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.run_folder import RunFolder, open_run_folder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.specs import FACTS, ArmSpec, parse_arm
from kslottery_fast.lab.experiment.trained import TrainedRows

SIZES = {"train": 24, "validation": 2, "test": 2, "steps": 2, "batch_size": 8, "micro_batch_size": 8}


def settings(*arms: str, **changes) -> ExperimentSettings:
    return ExperimentSettings(RunSettings(**{**SIZES, "learning_rate": 0.05, **changes}), arms, seeds=(0, 1))


@pytest.fixture(scope="module")
def tuned(compare_world, tmp_path_factory):
    """``tuned(**settings)``: a cell whose Embed Tuning is finished, on the same folder for all settings."""
    paths = {"model": str(compare_world / "model"), "corpus": str(compare_world / "pairs.tsv"), "dtype": "float32"}
    path, torch_threads = tmp_path_factory.mktemp("tuned"), torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = settings("contribution@4", **paths)
    with open_run_folder(path / "run", wanted.binding, wanted.grid) as folder:
        cell = Experiment(wanted, folder, RunConsole(quiet=True)).cells["es", 0]
        with cell.folder.write_stage("embed") as stage:
            ARMS["embed"].make(cell, ArmSpec("embed"), stage, lambda *_: None)
    torch.set_num_threads(torch_threads)

    def make(**changes) -> Cell:
        return Experiment(settings("contribution@4", **paths, **changes), folder, RunConsole(quiet=True)).cells["es", 0]

    return make


def measured(cell: Cell, seed: int, folder) -> RowContributions:
    folder.mkdir()
    contribution.measure(cell.shop, cell.tuned, seed, folder, lambda *_: None)
    return contribution.load(folder)


def test_the_facts_say_which_arms_need_contributions():
    by_selector = {name: isinstance(arm, ChosenRows) and arm.selector == "contribution" for name, arm in ARMS.items()}
    assert {name: facts.contributions for name, facts in FACTS.items()} == by_selector


@pytest.mark.parametrize(
    ("arm", "needed"),
    [("contribution@4", True), ("transfer-contribution@0.3", True), ("l2@enough", True), ("transfer-l2@4", False)],
)
def test_there_is_a_stage_after_embed_tuning_of_each_seed_if_an_arm_needs_it(arm, needed, tmp_path):
    jobs = [job.stage for job in Experiment(settings(arm), RunFolder(tmp_path), RunConsole(quiet=True)).jobs()]
    stages = [f"es.{seed}.contribution" for seed in (0, 1)]
    assert [stage for stage in jobs if stage.endswith(".contribution")] == stages * needed
    for stage in stages * needed:
        cell = stage.removesuffix("contribution")
        assert jobs.index(f"{cell}embed.score") < jobs.index(stage) < jobs.index(f"{cell}{parse_arm(arm, 0.05)}")


def test_the_stage_holds_the_contributions_of_all_active_rows_on_all_training_examples(tuned, tmp_path):
    cell = tuned()
    found, features = measured(cell, 0, tmp_path / "stage"), cell.shop.train_features
    batches = [collate(features[i : i + 8], cell.shop.pad_token_id) for i in (0, 8, 16)]
    after = cell.shop.base_table().clone()
    after[cell.tuned.token_ids] = cell.tuned.rows
    expected = row_contributions(cell.shop.model, cell.shop.model, after, batches)
    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.contribution, expected.contribution)
    assert (found.examples, len(found.points)) == (24, 8)
    assert found.total == pytest.approx(expected.fall, rel=0.15)
    assert (found.loss_before, found.loss_after) == (None, None)


def test_fewer_examples_are_drawn_by_the_seed(tuned, tmp_path):
    cell = tuned(contribution_examples=6)
    first, again, other = (measured(cell, seed, tmp_path / str(n)) for n, seed in enumerate((0, 0, 1)))
    assert [(each.examples, len(each.points)) for each in (first, again, other)] == [(6, 6)] * 3
    assert torch.equal(first.contribution, again.contribution)
    assert not torch.equal(first.contribution, other.contribution)


def worth(token_ids: list[int], contributions: list[float]) -> RowContributions:
    values = torch.tensor(contributions, dtype=torch.float64)
    nothing = torch.zeros(len(values), dtype=torch.float64)
    return RowContributions(torch.tensor(token_ids), values, nothing, 320, "gauss", nothing, nothing, 1)


def test_arms_take_the_rows_of_largest_contribution_and_as_many_as_are_enough(tuned):
    cell = tuned()
    ids = cell.evidence.token_ids.tolist()
    cell.contributions = worth(ids[:6], [0.01, 0.5, -0.2, 0.3, 0.02, 0.2])
    assert cell.choose("contribution", ArmSpec("contribution", 2)).tolist() == [ids[1], ids[3]]
    # 0.83 in all: 0.5 is 60% of it, 0.8 is 96%.
    assert cell.choose("contribution", ArmSpec("contribution", "enough")).tolist() == [ids[1], ids[3]]
    assert cell.choose("l2", ArmSpec("l2", "enough")).tolist() == cell.choose("l2", ArmSpec("l2", 2)).tolist()
    copied = ARMS["transfer-contribution"].rows(cell, ArmSpec("transfer-contribution", 2), None, None)
    expected = TrainedRows.load(cell.folder.stage_path("embed")).only(torch.tensor([ids[1], ids[3]]))
    assert torch.equal(copied.rows, expected.rows)
    cell.contributions = worth(ids[:2], [0.1, -0.2])
    assert len(cell.choose("contribution", ArmSpec("contribution", 3))) == 3
    with pytest.raises(InputError, match="the loss does not fall from before to after"):
        cell.choose("l2", ArmSpec("l2", "enough"))

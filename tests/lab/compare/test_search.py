"""Arms that search their learning rate, that have a number of steps of their own, or a random draw of their own."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from kslottery_fast.base.errors import DivergedError
from kslottery_fast.base.files import read_json, read_safetensors
from kslottery_fast.evaluation.likelihood import nll
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.experiment import training
from kslottery_fast.lab.experiment.arms import ARMS, Tune
from kslottery_fast.lab.experiment.cell import Cell
from kslottery_fast.lab.experiment.console import Effort, Forecast, RunConsole
from kslottery_fast.lab.experiment.jobs import work_through
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.run_folder import RunFolder, open_run_folder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.specs import FACTS, ArmSpec, parse_arm
from kslottery_fast.lab.experiment.trained import TrainedRows

SEED = 5


@pytest.fixture
def worked(compare_world, tmp_path):
    """``worked(*arms)``: the cell of an experiment whose arms are made, in one folder for all calls of a test."""

    def work(*arms: str, scores: bool = False, tuning_steps: int | None = None) -> Cell:
        sizes = {"train": 16, "validation": 3, "test": 2, "steps": 2, "batch_size": 8, "micro_batch_size": 8}
        sizes |= {"max_new_tokens": 2, "n_bootstrap": 5}
        paths = {"model": str(compare_world / "model"), "corpus": str(compare_world / "pairs.tsv"), "dtype": "float32"}
        base = RunSettings(**paths, **sizes, alpha=0.3, learning_rate=0.05, tuning_steps=tuning_steps)
        settings = ExperimentSettings(base, arms, seeds=(SEED,), effects=0)
        with open_run_folder(tmp_path / "run", settings.binding, settings.grid) as folder:
            experiment = Experiment(settings, folder, RunConsole(quiet=True))
            others = ("certificate", *(() if scores else ("score", "paraphrase")))
            jobs = [job for job in experiment.jobs() if not job.stage.endswith(others)]
            work_through(jobs, folder, experiment.console, "pytest")
            return experiment.cells["es", SEED]

    return work


@pytest.fixture
def trained(monkeypatch) -> list[tuple[float, int, str]]:
    """Learning rate, steps and checkpoint folder of every training that begins."""
    seen, train = [], training.train_parameters

    def recording(model, features, recipe, *, saver=None, **options):
        seen.append((recipe.learning_rate, recipe.steps, saver.folder.name if saver else ""))
        return train(model, features, recipe, saver=saver, **options)

    monkeypatch.setattr(training, "train_parameters", recording)
    return seen


def validation_nll(cell: Cell, spec: ArmSpec) -> float:
    shop = cell.shop
    with ARMS[spec.name].wearing(cell, cell.stage(spec)) as model:
        return nll(model, shop.loaded.tokenizer, shop.examples("validation"), batch_size=32).interval.value


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.name}.{name}": one for file in files for name, one in read_safetensors(file).items()}


def test_a_search_keeps_the_rate_with_the_lowest_validation_nll(worked):
    specs = [parse_arm(f"{name}:lr=0.1/3e-3", 0.05) for name in ("partial@4", "frozen@4", "lora@8", "prefix@8")]
    cell = worked(*map(str, specs))
    for spec in specs:
        check_search(cell, spec)


def check_search(cell: Cell, spec: ArmSpec) -> None:
    record = cell.record(spec)
    tried = {one["rate"]: one["validation_nll"] for one in record["learning_rates"]}
    assert tried == pytest.approx({one.learning_rate: validation_nll(cell, one) for one in spec.candidates}, rel=1e-6)
    assert len(set(tried.values())) == 2
    best = min(tried, key=tried.get)
    kept = spec.candidates[spec.rates.index(best)]
    assert (record["arm"], record["kept"]) == (str(spec), str(kept))
    assert record["trained_parameters"] == cell.record(kept)["trained_parameters"] > 0
    assert read_json(cell.stage(spec) / "losses.json") == read_json(cell.stage(kept) / "losses.json")
    found, expected = tensors_of(cell.stage(spec)), tensors_of(cell.stage(kept))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert validation_nll(cell, spec) == pytest.approx(tried[best], rel=1e-6)
    assert {file.name for file in cell.stage(spec).iterdir()} == {file.name for file in cell.stage(kept).iterdir()}


def test_a_comparison_reports_the_rates_that_it_tried_and_what_the_search_cost(arguments, tmp_path, capsys):
    output, spec = tmp_path / "out", "partial@4:lr=0.01_0.1"
    sets = "partial@4:lr=1e-1/1e-2,frequency@4:lr=1e-1/1e-2,random@4:lr=0.1:draw=1"
    assert cli.main(arguments(output, "--arms", sets, "--seed", "0", "--effects", "0")) == 0
    printed = capsys.readouterr().out
    summary, found = read_json(output / "summary.json"), read_json(output / "stages" / f"es.0.{spec}" / "arm.json")
    arm = summary["languages"]["es"]["arms"][spec]
    best = min(found["learning_rates"], key=lambda one: one["validation_nll"])
    assert arm["learning_rates"] == [{"kept": best["rate"], "tried": found["learning_rates"]}]
    trained = [summary["seconds"][f"es.0.partial@4:lr={rate}"] for rate in ("0.01", "0.1")]
    assert arm["seconds"]["making"] == [pytest.approx(sum(trained) + summary["seconds"][f"es.0.{spec}"])]
    assert [entry["own"] for entry in summary["languages"]["es"]["controls"]] == [spec]
    page = (output / "report.html").read_text(encoding="utf-8")
    for text in (" ".join(printed.split()), page):
        assert "Chosen" in text
        assert "learning rate that was tried had the lowest validation NLL for" in text
    assert "@4:lr=0.01/0.1" in page
    with (output / "scores.csv").open(newline="") as file:
        assert [line["learning_rates"] for line in csv.DictReader(file) if line["arm"] == spec] == [str(best["rate"])]
    assert cli.main(["info", str(output / "stages" / f"es.0.{spec}")]) == 0


def test_a_search_that_is_interrupted_trains_no_finished_rate_again(worked, trained, monkeypatch):
    recording = training.train_parameters

    def interrupted(model, features, recipe, **options):
        if recipe.learning_rate == 0.03:
            raise KeyboardInterrupt
        return recording(model, features, recipe, **options)

    monkeypatch.setattr(training, "train_parameters", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worked("frequency@4:lr=0.01/0.03")
    monkeypatch.setattr(training, "train_parameters", recording)
    worked("frequency@4:lr=0.01/0.03")
    assert trained == [
        (0.05, 2, f"es.{SEED}.embed"),
        (0.01, 2, f"es.{SEED}.frequency@4:lr=0.01"),
        (0.03, 2, f"es.{SEED}.frequency@4:lr=0.03"),
    ]


def test_a_longer_list_and_single_rates_share_the_trainings_of_a_search(worked, trained):
    worked("l2@4:lr=0.01/0.03")
    worked("l2@4:lr=0.03/0.1/0.01", "l2@4:lr=0.03", "l2@4:lr=0.01/0.03")
    assert [rate for rate, *_ in trained] == [0.05, 0.01, 0.03, 0.1]


def test_a_rate_at_which_the_training_diverges_is_not_kept(worked):
    cell = worked("random@4:lr=0.01/1e39")
    record = cell.record(parse_arm("random@4:lr=0.01/1e39", 0.05))
    assert record["kept"] == "random@4:lr=0.01"
    assert [(one["rate"], one["validation_nll"] is None) for one in record["learning_rates"]] == [
        (0.01, False),
        (1e39, True),
    ]
    with pytest.raises(DivergedError, match=r"arm random@4:lr=1e\+39 diverged when its learning rate was searched \("):
        worked("random@4:lr=1e39", scores=True)
    with pytest.raises(DivergedError, match=r"arm random@4:lr=9e\+38/1e\+39: .* at every learning rate; give lower"):
        worked("random@4:lr=1e39/9e38")


def test_the_time_of_a_training_that_diverged_says_nothing_about_others(worked, monkeypatch):
    learned = []
    monkeypatch.setattr(Forecast, "learn", lambda self, effort, seconds: learned.append(effort))
    worked("random@4:lr=0.01/1e39")
    assert learned.count(Effort("training")) == 2  # Embed Tuning, and the rate that was kept


def test_rows_that_alpha_does_not_select_have_no_rate(worked, trained):
    cell = worked("partial@1e-9:lr=0.01/0.03")
    record = cell.record(parse_arm("partial@1e-9:lr=0.01/0.03", 0.05))
    assert (record["rows"], record["learning_rates"]) == (0, [])
    assert len(trained) == 1


def test_weights_of_full_tuning_are_removed_after_a_search_and_made_again_if_they_are_needed(worked, trained):
    spec, longer = parse_arm("full:lr=1e-3/1e-2", 0.05), parse_arm("full:lr=1e-3/1e-2/1", 0.05)
    cell = worked(str(spec))
    weights = [cell.stage(one) / "weights.safetensors" for one in (spec, *spec.candidates)]
    assert [file.exists() for file in weights] == [True, False, False]
    before = cell.record(spec)["learning_rates"]
    assert validation_nll(cell, spec) == min(one["validation_nll"] for one in before)
    ARMS["full"].spent(cell.stage(spec))
    assert validation_nll(cell, spec) == min(one["validation_nll"] for one in before)
    after = worked(str(longer)).record(longer)["learning_rates"]
    assert after[:2] == before
    best = min(before, key=lambda one: one["validation_nll"])["rate"]
    assert [rate for rate, *_ in trained] == [0.05, 1e-3, 1e-2, best, 1, 1e-3, 1e-2]


def test_an_arm_trains_for_its_own_number_of_steps(worked, trained):
    cell = worked("frequency@4:lr=0.01/0.02:steps=3", "frequency@4", "embed:steps=5")
    assert [(rate, steps) for rate, steps, _ in trained] == [(0.05, 2), (0.01, 3), (0.02, 3), (0.01, 2), (0.05, 5)]
    # The rate falls linearly to 0 over the arm's own steps, so that only its first value is that of the run's steps.
    own = TrainedRows.load(cell.stage(ArmSpec("frequency", 4, 0.01, steps=3)))
    usual = TrainedRows.load(cell.stage(ArmSpec("frequency", 4)))
    assert (own.losses[:2], len(own.losses)) == (usual.losses, 3)
    assert not torch.equal(own.rows, usual.rows)
    assert read_json(cell.stage(ArmSpec("embed", steps=5)) / "evidence.json")["trajectory_steps"][-1] == 5


def test_the_tuning_steps_of_a_run_are_those_of_partial_tuning_and_its_controls(worked, trained):
    cell = worked("partial@4", "random@4", "frequency@4:steps=4", "frozen@4", "lora@8", tuning_steps=3)
    names = {stage: steps for _, steps, stage in trained}
    expected = {"embed": 2, "partial@4": 3, "random@4": 3, "frequency@4:steps=4": 4, "frozen@4": 2, "lora@8": 2}
    assert {name.rpartition(f".{SEED}.")[2]: steps for name, steps in names.items()} == expected
    assert len(TrainedRows.load(cell.stage(ArmSpec("partial", 4))).losses) == 3


def test_the_facts_say_which_arms_tune_chosen_rows():
    assert {name: facts.tunes for name, facts in FACTS.items()} == {n: isinstance(arm, Tune) for n, arm in ARMS.items()}


def test_a_training_of_more_updates_is_forecast_to_take_longer(tmp_path):
    settings = ExperimentSettings(RunSettings(tuning_steps=300), ("partial@4", "frequency@4:steps=75"))
    jobs = Experiment(settings, RunFolder(tmp_path), RunConsole(quiet=True)).jobs()
    efforts = {job.stage.partition(f".{settings.seeds[0]}.")[2]: job.effort for job in jobs}
    assert efforts["embed"] == Effort("training")
    assert efforts["partial@4"] == Effort("training", 2.0)
    assert efforts["frequency@4:steps=75"] == Effort("training", 0.5)


def test_a_draw_chooses_other_rows_and_draw_0_those_of_the_training_seed(worked):
    cell = worked("random@6", "random@6:draw=1", "transfer-random@6:draw=2", "noise@6", "noise@6:draw=1")
    active = len(cell.evidence)
    zero, one, two = (cell.choose("random", ArmSpec("random", 6, draw=draw)).tolist() for draw in range(3))
    order = torch.randperm(active, generator=torch.Generator().manual_seed(SEED))
    assert zero == cell.evidence.token_ids[order[:6]].tolist()
    assert len({tuple(zero), tuple(one), tuple(two)}) == 3
    neighbour = Cell(cell.shop, "es", SEED + 1)
    neighbour.evidence = cell.evidence
    assert one != neighbour.choose("random", ArmSpec("random", 6)).tolist()
    assert one != neighbour.choose("random", ArmSpec("random", 6, draw=1)).tolist()
    assert TrainedRows.load(cell.stage(ArmSpec("random", 6, draw=1))).token_ids.tolist() == sorted(one)
    assert TrainedRows.load(cell.stage(ArmSpec("transfer-random", 6, draw=2))).token_ids.tolist() == sorted(two)
    noise, other = (TrainedRows.load(cell.stage(ArmSpec("noise", 6, draw=draw))) for draw in range(2))
    assert torch.equal(noise.token_ids, other.token_ids)
    assert not torch.equal(noise.rows, other.rows)

"""Arms: the table of them is whole, and what single ones do with the rows that were chosen."""

from types import SimpleNamespace

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.arms import ARMS, CHOSEN, ChosenRows, Transfer, Tune, norm_matched_noise
from kslottery_fast.lab.experiment.cell import Cell
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.run_folder import RunFolder, open_run_folder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.specs import FACTS, ArmSpec
from kslottery_fast.lab.experiment.trained import TrainedRows
from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.tickets.evidence import SELECTORS

D, ACTIVE = 48, torch.arange(0, 400, 4)


def test_every_arm_that_can_be_asked_for_can_be_made():
    assert list(ARMS) == list(FACTS)
    asked = {arm.selector for arm in ARMS.values() if isinstance(arm, ChosenRows)}
    assert asked == set(CHOSEN) == {*SELECTORS, "contribution"}


def test_the_facts_name_the_selector_of_every_arm_that_trains_or_copies_the_rows_that_it_chooses():
    chosen = {name: arm.selector for name, arm in ARMS.items() if type(arm) in (Tune, Transfer)}
    assert {name: facts.selector for name, facts in FACTS.items() if facts.selector} == chosen
    assert all(FACTS[name].trains == isinstance(ARMS[name], Tune) for name in chosen)


def test_frozen_rows_that_alpha_does_not_select_leave_embed_tuning_as_it_is_unless_the_rate_differs(tmp_path):
    tuned, trained = TrainedRows(ACTIVE, torch.zeros(len(ACTIVE), D), [1.0]), []
    cell = SimpleNamespace(
        evidence=SimpleNamespace(token_ids=ACTIVE),
        tuned=tuned,
        choose=lambda *_: ACTIVE[:0],
        shop=SimpleNamespace(settings=SimpleNamespace(learning_rate=0.01)),
        train=lambda _, ids, rate, *__: trained.append((len(ids), rate)),
    )
    for rate in (None, 0.01):
        assert ARMS["frozen"].rows(cell, ArmSpec("frozen", 1e-6, rate), tmp_path, None) is tuned
    assert trained == []
    ARMS["frozen"].rows(cell, ArmSpec("frozen", 1e-6, 0.003), tmp_path, None)
    assert trained == [(len(ACTIVE), 0.003)]


@pytest.mark.parametrize(
    ("moved", "notes"),
    [
        (
            3.0,
            ["no row of 48 numbers can be significant at alpha 1e-40", "only 2 rows moved (D > 0), but top_k is 18"],
        ),
        (0.0, ["no row differs between the original table and the tuned table"]),
    ],
)
def test_embed_tuning_says_why_alpha_selects_nothing_and_how_many_rows_moved(tmp_path, capsys, moved, notes):
    before = torch.randn(400, D, generator=torch.Generator().manual_seed(0))
    rows = before[ACTIVE].clone()
    rows[:2] += moved

    def train(spec, ids, rate, progress, witness):
        witness.gradient = torch.ones(len(ACTIVE))
        return TrainedRows(ACTIVE, rows, [1.0])

    settings = RunSettings(alpha=1e-40)
    shop = SimpleNamespace(
        settings=settings, console=RunConsole(), base_table=lambda: before, counts=torch.zeros(400, dtype=torch.int64)
    )
    shop.counts[ACTIVE] = 1
    making = SimpleNamespace(shop=shop, train=train, steps=lambda _: settings.steps)
    ARMS["embed"].rows(making, ArmSpec("embed"), tmp_path, None)
    *said, _ = capsys.readouterr().err.splitlines()  # the last line says what was selected
    assert [line.partition(":")[2].partition(":")[0] for line in said] == [f" {note}" for note in notes]
    assert all(line.startswith("note: ") for line in said)
    shop.folder = RunFolder(tmp_path)
    cell = Cell(shop, "es", 0)
    cell.stage = lambda _: tmp_path
    if moved:
        assert len(cell.tickets) == 2
    else:
        with pytest.raises(
            InputError, match="Embed Tuning moved no row; raise the learning rate or the number of steps"
        ):
            cell.tickets  # noqa: B018
    assert capsys.readouterr().err == ""


def test_the_optimizer_of_stage_1_is_that_of_embed_tuning_and_frozen_arms_alone(compare_world, tmp_path, monkeypatch):
    seen = []

    class Recording(RowAdamW):
        def __init__(self, *arguments, **options):
            seen.append((options["betas"], options["eps"], options["lazy"]))
            super().__init__(*arguments, **options)

    monkeypatch.setattr("kslottery_fast.integrations.trainer.RowAdamW", Recording)
    sizes = {"train": 8, "validation": 2, "test": 2, "steps": 1, "batch_size": 4, "micro_batch_size": 4}
    paths = {"model": str(compare_world / "model"), "corpus": str(compare_world / "pairs.tsv"), "dtype": "float32"}
    base = RunSettings(**paths, **sizes, stage1_beta2=0.95, stage1_eps=1e-3)
    settings = ExperimentSettings(base, ("frozen@4", "partial@4", "lora@8"), seeds=(0,))
    with open_run_folder(tmp_path / "run", settings.binding, settings.grid) as folder:
        cell = Experiment(settings, folder, RunConsole(quiet=True)).cells["es", 0]
        for spec in settings.specs:
            with cell.home(spec).write_stage(str(spec)) as stage:
                ARMS[spec.name].make(cell, spec, stage, lambda *_: None)
    stage1, others = ((0.9, 0.95), 1e-3, True), ((0.9, 0.999), 1e-8, False)
    assert seen == [stage1] * 2 + [others] * 2
    assert {name for name, facts in FACTS.items() if facts.stage1} == {"embed", "frozen", "frozen-frequency"}


def test_noise_has_the_norms_of_the_change_and_other_directions():
    change = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * torch.arange(5.0)[:, None]
    noise = norm_matched_noise(change, 0)
    assert noise.norm(dim=1) == pytest.approx(change.norm(dim=1), rel=1e-5)
    assert torch.nn.functional.cosine_similarity(noise[1:], change[1:]).abs().max() < 0.5
    assert torch.equal(noise, norm_matched_noise(change, 0))
    assert not torch.equal(noise, norm_matched_noise(change, 1))


def test_a_copy_of_more_rows_than_there_are_copies_all_and_says_so():
    tuned, notes = TrainedRows(ACTIVE, torch.ones(len(ACTIVE), D), [1.0]), []
    console = SimpleNamespace(note=notes.append)
    cell = SimpleNamespace(
        tuned=tuned, choose=lambda _, spec: ACTIVE[: spec.size], shop=SimpleNamespace(console=console)
    )
    for size, copied in ((len(ACTIVE), len(ACTIVE)), (4000, len(ACTIVE)), (5, 5)):
        found = ARMS["transfer-l2"].rows(cell, ArmSpec("transfer-l2", size), None, None)
        assert len(found.token_ids) == copied
    assert notes == ["arm transfer-l2@4000 copies all 100 rows that can be chosen by l2"]

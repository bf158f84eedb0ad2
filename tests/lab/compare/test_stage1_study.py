"""The study of stage 1's optimizer: it measures what the experiment does, goes on where it stopped, and chooses."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.stage1_optimizers import Method, PlainAdam
from benchmarks.stage1_study import Setting, Study, chosen, main, means
from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.trained import TrainedRows


@pytest.fixture(scope="module")
def study(compare_world, tmp_path_factory) -> Study:
    sizes = {"train": 8, "validation": 3, "test": 2, "steps": 4, "batch_size": 2, "micro_batch_size": 2}
    paths = {"model": str(compare_world / "model"), "corpus": str(compare_world / "pairs.tsv"), "dtype": "float32"}
    base = RunSettings(**paths, **sizes, learning_rate=0.05, alpha=0.3, n_bootstrap=5)
    return Study(base, tmp_path_factory.mktemp("study"), RunConsole(quiet=True))


def test_a_setting_is_trained_scored_and_recorded_once_and_eps_decides(study, monkeypatch, capsys):
    small, large = (Setting(Method("adam", eps, 0.999), "es", 0) for eps in (1e-8, 1.0))
    found = [study.result(setting) for setting in (small, large)]
    assert [result["settings"]["stage1_eps"] for result in found] == [1e-8, 1.0]
    moved = [TrainedRows.load(study.output / "folders" / str(one) / "stages" / "es.0.embed") for one in (small, large)]
    before = study.first.base_table()[moved[0].token_ids]
    assert (moved[1].rows - before).norm() < 0.1 * (moved[0].rows - before).norm()
    assert found[0]["tickets"] > 0
    assert found[1]["tickets"] == 0
    assert 0 < found[1]["rare"] < 0.1 * found[0]["rare"] < 1
    assert found[0]["untuned"] == found[1]["untuned"]
    assert len({result["embed"] for result in found}) == 2
    assert list(found[0]["transfer"]) == ["ks@18", "ks@64", "l2@18", "l2@64", "frequency@18", "frequency@64"]
    assert all(0 < one["cover"] <= 1 and one["nll"] > 0 for one in found[0]["transfer"].values())
    frequent = found[0]["transfer"]["frequency@18"]["occurrences"]
    assert frequent == sorted(frequent, reverse=True)

    monkeypatch.setattr(Study, "_run", None)  # so nothing may run again
    assert study.result(small) == found[0]
    other = Study(replace(study.base, model="another"), study.output, RunConsole(quiet=True))
    with pytest.raises(InputError, match=r"was made with model .*, not another; give another --output"):
        other.result(small)
    assert main(["--output", str(study.output), "--target", "es", "--table"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in table[1:2]] == [["adam", "1e-08", "0.999", "es,", "0"]]
    assert table[-1] == "the rule chooses optimizer adam, eps 1e-08, beta2 0.999, of 1 settings"


OTHERS = [
    Method("row", 1e-8, 0.999),
    Method("lazy", 1e-8, 0.999),
    Method("sgd", learning_rate=1.0),
]


def test_other_optimizers_train_stage_1_and_stand_in_the_same_table(study, capsys):
    found = {one.optimizer: study.result(Setting(one, "es", 0)) for one in (Method("adam", 1e-8, 0.999), *OTHERS)}
    assert len({result["embed"] for result in found.values()}) == 4
    assert found["sgd"]["settings"]["learning_rate"] == 1.0
    assert [result["settings"]["stage1_lazy"] for result in found.values()] == [False, False, True, False]
    assert [found[name]["settings"]["learning_rate"] for name in ("adam", "row", "lazy")] == [0.05] * 3

    options = ["--output", str(study.output), "--target", "es", "--table"]
    assert main([*options, "--optimizer", "adam,row,lazy,sgd", "--eps", "1e-8"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in table[1:5]] == [
        ["adam", "1e-08", "0.999", "es,"],
        ["row", "1e-08", "0.999", "es,"],
        ["lazy", "1e-08", "0.999", "es,"],
        ["sgd", "1", "es,", "0"],
    ]
    assert table[-1][-3:] == ["of", "4", "settings"]


def test_a_result_from_before_there_were_other_optimizers_is_one_of_adam(study):
    setting = Setting(Method("adam", 1e-8, 0.999), "es", 0)
    path = study.output / "es.0.eps=1e-08.beta2=0.999.json"  # the names of files have not changed
    older = {name: value for name, value in study.result(setting).items() if name not in ("optimizer", "learning_rate")}
    path.write_text(json.dumps(older))
    assert Method.of(study.result(setting)) == setting.method


def test_an_unknown_optimizer_is_refused_by_name():
    with pytest.raises(SystemExit, match="--optimizer adams: expected some of adam, row, lazy, sgd"):
        main(["--optimizer", "adams"])


def updates(optimizer: type, grads: torch.Tensor, dtype=torch.float64, **options) -> torch.Tensor:
    """The rows, 0 at first, after some updates with a learning rate that falls."""
    rows = nn.Parameter(torch.zeros(grads.shape[1:], dtype=dtype))
    made = optimizer([rows], lr=0.1, **options)
    for step, grad in enumerate(grads):
        made.param_groups[0]["lr"] = 0.1 / (1 + step)
        rows.grad = grad.to(dtype)
        made.step()
    return rows.detach()


@pytest.fixture(scope="module")
def grads() -> torch.Tensor:
    """The gradients of 12 updates of 5 rows, of which every update reads some."""
    generator = torch.Generator().manual_seed(0)
    read = torch.rand(12, 5, 1, generator=generator) < 0.6
    return torch.randn(12, 5, 4, generator=generator, dtype=torch.float64) * read


def test_plain_adam_is_adam(grads):
    options = {"betas": (0.8, 0.95), "eps": 1e-3}
    assert torch.allclose(updates(PlainAdam, grads, **options), updates(torch.optim.Adam, grads, **options))


def test_one_second_moment_for_a_row_is_that_of_the_mean_of_its_squared_gradients(grads):
    betas, eps = (0.8, 0.95), 1e-3
    rows = torch.zeros(5, 4, dtype=torch.float64)
    for row in range(5):
        moment, second = torch.zeros(4, dtype=torch.float64), 0.0
        for step, grad in enumerate(grads[:, row], start=1):
            moment = betas[0] * moment + (1 - betas[0]) * grad
            second = betas[1] * second + (1 - betas[1]) * float((grad**2).mean())
            root = (second / (1 - betas[1] ** step)) ** 0.5
            rows[row] -= 0.1 / step * moment / (1 - betas[0] ** step) / (root + eps)
    found = updates(PlainAdam, grads, betas=betas, eps=eps, second_moment="row")
    assert torch.allclose(found, rows)
    # Such an update does not depend on the axes. Adam's does.
    turn = torch.linalg.qr(grads[0, :4] + torch.eye(4)).Q
    for moment, same in (("row", True), ("element", False)):
        options = {"betas": betas, "second_moment": moment}
        turned = updates(PlainAdam, grads @ turn, **options)
        assert torch.allclose(turned, updates(PlainAdam, grads, **options) @ turn) == same


def result(eps: float, target: str, embed: float, ks: float) -> dict:
    transfers = {f"{name}@{size}": {"nll": ks} for name in ("ks", "l2", "frequency") for size in (18, 64)}
    return {
        "eps": eps, "beta2": 0.999, "target": target, "seed": 0, "embed": embed, "tickets": 3, "cover": 0.1,
        "rare": 3.0, "often": 4.0,
        "transfer": transfers,
    }  # fmt: skip


def test_means_are_over_the_languages_in_which_no_setting_is_missing():
    found = [result(1e-8, "es", 1.0, 2.0), result(1e-4, "es", 1.01, 1.5), result(1e-8, "ca", 9.0, 9.0)]
    small, large = (Method("adam", eps, 0.999) for eps in (1e-8, 1e-4))
    assert {method: (one["embed"], one["ks@18"]) for method, one in means(found).items()} == {
        small: (1.0, 2.0),
        large: (1.01, 1.5),
    }
    assert chosen(means(found)) == large
    assert means([result(1e-8, "es", 1.0, 2.0), result(1e-4, "ca", 1.0, 2.0)]) == {}

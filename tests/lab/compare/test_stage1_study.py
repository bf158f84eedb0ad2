"""The study of stage 1's optimizer: it measures what the experiment does, goes on where it stopped, and chooses."""

import pytest

from benchmarks.stage1_study import Setting, Study, chosen, main, means
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.settings import RunSettings
from kslottery_fast.lab.experiment.trained import TrainedRows


@pytest.fixture(scope="module")
def study(compare_world, tmp_path_factory) -> Study:
    sizes = {"train": 8, "validation": 3, "test": 2, "steps": 2, "batch_size": 4, "micro_batch_size": 4}
    paths = {"model": str(compare_world / "model"), "corpus": str(compare_world / "pairs.tsv"), "dtype": "float32"}
    base = RunSettings(**paths, **sizes, learning_rate=0.05, alpha=0.3, n_bootstrap=5)
    return Study(base, tmp_path_factory.mktemp("study"), RunConsole(quiet=True))


def test_a_setting_is_trained_scored_and_recorded_once_and_eps_decides(study, monkeypatch, capsys):
    small, large = (Setting(eps, 0.999, "es", 0) for eps in (1e-8, 1.0))
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
    assert main(["--output", str(study.output), "--target", "es", "--table"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in table[1:2]] == [["1e-08", "0.999", "es,", "0"]]
    assert table[-1] == "the rule chooses eps 1e-08 and beta2 0.999, of 1 settings"


def result(eps: float, target: str, embed: float, ks: float) -> dict:
    transfers = {f"{name}@{size}": {"nll": ks} for name in ("ks", "l2", "frequency") for size in (18, 64)}
    return {
        "eps": eps, "beta2": 0.999, "target": target, "seed": 0, "embed": embed, "tickets": 3, "cover": 0.1,
        "rare": 3.0, "often": 4.0,
        "transfer": transfers,
    }  # fmt: skip


def test_means_are_over_the_languages_in_which_no_setting_is_missing():
    found = [result(1e-8, "es", 1.0, 2.0), result(1e-4, "es", 1.01, 1.5), result(1e-8, "ca", 9.0, 9.0)]
    assert {pair: (one["embed"], one["ks@18"]) for pair, one in means(found).items()} == {
        (1e-8, 0.999): (1.0, 2.0),
        (1e-4, 0.999): (1.01, 1.5),
    }
    assert chosen(means(found)) == (1e-4, 0.999)
    assert means([result(1e-8, "es", 1.0, 2.0), result(1e-4, "ca", 1.0, 2.0)]) == {}

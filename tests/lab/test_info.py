"""`kslottery info`: one test for each kind of file and folder that a run writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import ks_select
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_json
from kslottery_fast.lab.cli.info import describe, describe_installation
from kslottery_fast.lab.experiment.settings import ExperimentSettings, RunSettings

SETTINGS = ExperimentSettings.of_run(RunSettings(model="tiny", seed=3))
HEADER = {"format": "kslottery-experiment/1", "settings": SETTINGS.binding, "grid": SETTINGS.grid}
SUMMARY = HEADER | {
    "format": "kslottery-summary/1",
    "title": "tiny, English to Spanish",
    "tickets": {"count": 7, "selected_by": "alpha", "token_ids": [1, 2]},
    "languages": {"es": {"name": "Spanish", "arms": {"untuned": {"scores": {"nll": {"value": 2.345678}}}}}},
}


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run that has finished three stages and is at the next."""
    for stage in ("es.corpus", "es.untuned", "es.untuned.score", ".es.3.embed.half-done.tmp"):
        (tmp_path / "run" / "stages" / stage).mkdir(parents=True)
    write_json(tmp_path / "run" / "run.json", HEADER)
    return tmp_path / "run"


def finish(run: Path) -> None:
    """Give the folder of the fixture all other stages, empty ones."""
    arms = ("embed", "transfer@tickets", "partial@tickets", "frequency@tickets", "random@tickets")
    for stage in ("certificate", *arms, *(f"{arm}.score" for arm in arms)):
        (run / "stages" / f"es.3.{stage}").mkdir()


def test_a_run_that_is_not_finished_says_how_far_it_is_and_what_is_next(run):
    facts = describe(run)
    assert facts["path"] == str(run)
    assert facts["stages"] == "3 of 14 finished; next: Embed Tuning"
    assert facts["settings"] == HEADER["settings"]
    assert "NLL per token" not in facts
    assert describe(run / "run.json") == {"path": str(run / "run.json"), "what": "the settings of a run", **HEADER}


def test_a_finished_run_shows_its_results_and_so_does_its_summary(run):
    write_json(run / "summary.json", SUMMARY)
    finish(run)
    facts, summary = describe(run), describe(run / "summary.json")
    assert facts["what"].startswith("an experiment")
    assert facts["stages"] == "14 of 14 finished"
    for found in (facts, summary):
        assert found["title"] == "tiny, English to Spanish"
        assert found["grid"] == SETTINGS.grid
        assert found["tickets"] == "7, selected by alpha"
        assert found["NLL per token"] == {"Spanish": {"untuned": 2.3457}}
    assert summary["what"].startswith("the results of an experiment")


def test_a_finished_run_that_a_larger_comparison_has_begun_to_extend_goes_on(run):
    write_json(run / "summary.json", SUMMARY)
    finish(run)
    write_json(run / "run.json", HEADER | {"grid": SETTINGS.grid | {"seeds": [3, 4]}})
    assert describe(run)["stages"] == "14 of 25 finished; next: es, seed 4: Embed Tuning"


@pytest.mark.parametrize(
    "content",
    [
        {"format": 1, "title": "tiny", "models": {}, "findings": []},
        {"format": "kslottery-comparison/1", "title": "tiny"},
    ],
)
def test_a_summary_of_version_0_1_is_called_so(tmp_path, content):
    write_json(tmp_path / "summary.json", content | {"settings": {}, "languages": {}})
    facts = describe(tmp_path / "summary.json")
    assert facts["what"].startswith("a summary of version 0.1")
    assert facts["title"] == "tiny"


def test_a_run_of_version_0_1_is_called_so(run):
    write_json(run / "run.json", HEADER | {"format": "kslottery-run/1"})
    write_json(run / "summary.json", {"models": {}})
    assert "a run of version 0.1, which this version can neither continue nor report" in describe(run)["what"]


def test_tickets_say_what_to_do_with_them(tmp_path):
    before = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[[3, 14]] += 0.5
    tickets = ks_select(before, after, alpha=0.01)
    tickets.save(tmp_path / "tickets.json")
    facts = describe(tmp_path / "tickets.json")
    assert facts["summary"] == tickets.summary()
    assert sorted(facts["token ids"]) == [3, 14]
    assert "attach_rows" in facts["what"]


def test_tensors_are_listed_and_those_of_the_tickets_are_explained(tmp_path):
    save_file({"w": torch.zeros(2, 3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    assert describe(tmp_path / "a.safetensors")["tensors"] == {"w": "BF16 [2, 3]"}
    assert describe(tmp_path / "a.safetensors")["what"] == "tensors"
    names = ("token_ids", "embed_tuned", "partial_tuned")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "b.safetensors")
    assert describe(tmp_path / "b.safetensors")["what"].startswith("rows of the tickets: row i is that of token_ids[i]")


def test_an_adapter_names_its_base_model(tmp_path):
    config = {"peft_type": "TRAINABLE_TOKENS", "base_model_name_or_path": "tiny", "target_modules": ["embed_tokens"]}
    write_json(tmp_path / "adapter_config.json", config)
    with pytest.raises(InputError, match=r"adapter_model.safetensors: no such file"):
        describe(tmp_path)
    save_file({"rows": torch.zeros(2, 3)}, tmp_path / "adapter_model.safetensors")
    facts = describe(tmp_path)
    assert (facts["type"], facts["base model"], facts["module"]) == ("TRAINABLE_TOKENS", "tiny", ["embed_tokens"])
    assert facts["tensors"] == {"rows": "F32 [2, 3]"}


def test_a_scan_and_an_environment_are_shown_without_their_long_lists(tmp_path):
    write_json(tmp_path / "scan.json", {"format": "kslottery-scan/1", "before": "a", "tensors": [{}]})
    facts = describe(tmp_path / "scan.json")
    assert facts["before"] == "a"
    assert "tensors" not in facts
    record = {"packages": {"torch": "2.6"}, "system": {"cpu": "x"}, "seed": 0, "something else": 1}
    write_json(tmp_path / "environment.json", record)
    facts = describe(tmp_path / "environment.json")
    assert facts["packages"] == {"torch": "2.6"}
    assert "something else" not in facts


def test_the_installation_is_json_and_names_the_packages():
    assert {"kslottery-fast", "torch", "transformers", "PEFT"} <= json.loads(json.dumps(describe_installation())).keys()

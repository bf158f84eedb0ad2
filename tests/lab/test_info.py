"""`kslottery info`: one test for each kind of file and folder. tests/lab/compare asks about all that a run writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import ks_select
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_json
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.cli.explain import describe
from kslottery_fast.lab.cli.info import describe_installation
from kslottery_fast.lab.experiment.run_folder import RunFolder
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
    arms = [str(spec) for spec in SETTINGS.specs if str(spec) != "untuned"]
    for stage in ("certificate", "contribution", *arms, *(f"{arm}.score" for arm in arms)):
        (run / "stages" / f"es.3.{stage}").mkdir()


def test_a_run_that_is_not_finished_says_how_far_it_is_and_what_is_next(run):
    facts = describe(run)
    assert facts["path"] == str(run)
    assert (facts["stages_finished"], facts["stages"], facts["next_stage"]) == (3, 23, "Embed Tuning")
    assert facts["settings"] == HEADER["settings"]
    assert "nll_per_token" not in facts
    facts = describe(run / "run.json")
    assert facts.pop("what").startswith("the settings of an experiment")
    assert facts == {"path": str(run / "run.json"), **HEADER}


def test_a_finished_run_shows_its_results_and_so_does_its_summary(run):
    write_json(run / "summary.json", SUMMARY)
    finish(run)
    facts, summary = describe(run), describe(run / "summary.json")
    assert facts["what"].startswith("an experiment of `kslottery run`")
    assert (facts["stages_finished"], facts["stages"], facts["next_stage"]) == (23, 23, None)
    for found in (facts, summary):
        assert found["title"] == "tiny, English to Spanish"
        assert found["grid"] == SETTINGS.grid
        assert found["tickets"] == {"count": 7, "selected_by": "alpha"}
        assert found["nll_per_token"] == {"Spanish": {"untuned": 2.3457}}
    assert summary["what"].startswith("the results of an experiment")


def test_a_finished_run_that_a_larger_comparison_has_begun_to_extend_goes_on(run):
    write_json(run / "summary.json", SUMMARY)
    finish(run)
    write_json(run / "run.json", HEADER | {"grid": SETTINGS.grid | {"seeds": [3, 4]}})
    facts = describe(run)
    assert (facts["stages_finished"], facts["stages"]) == (23, 43)
    assert facts["next_stage"] == "es, seed 4: Embed Tuning"


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
    assert facts["what"] == "the results of an experiment of version 0.1"
    assert facts["title"] == "tiny"


def test_a_run_of_version_0_1_is_called_so(run):
    write_json(run / "run.json", HEADER | {"format": "kslottery-run/1"})
    write_json(run / "summary.json", {"models": {}})
    assert describe(run)["what"] == "an experiment of version 0.1, which this version can neither resume nor report"


def test_tickets_say_what_to_do_with_them(tmp_path):
    before = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[[3, 14]] += 0.5
    tickets = ks_select(before, after, alpha=0.01)
    tickets.save(tmp_path / "tickets.json")
    facts = describe(tmp_path / "tickets.json")
    assert facts["summary"] == tickets.summary()
    assert sorted(facts["token_ids"]) == [3, 14]
    assert "attach_rows" in facts["what"]


def test_tensors_are_listed_and_those_of_the_tickets_are_explained(tmp_path):
    save_file({"w": torch.zeros(2, 3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    assert describe(tmp_path / "a.safetensors")["tensors"] == {"w": "BF16 [2, 3]"}
    assert describe(tmp_path / "a.safetensors")["what"] == "tensors"
    names = ("token_ids", "embed_tuned", "partial_tuned")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "tickets.safetensors")
    write_json(tmp_path / "run.json", HEADER)
    assert describe(tmp_path / "tickets.safetensors")["what"].startswith("the rows of the tickets (`token_ids`) after")


def test_an_adapter_names_its_base_model(tmp_path):
    config = {"peft_type": "TRAINABLE_TOKENS", "base_model_name_or_path": "tiny", "target_modules": ["embed_tokens"]}
    write_json(tmp_path / "adapter_config.json", config)
    with pytest.raises(InputError, match=r"adapter_model.safetensors: no such file"):
        describe(tmp_path)
    save_file({"rows": torch.zeros(2, 3)}, tmp_path / "adapter_model.safetensors")
    facts = describe(tmp_path)
    found = (facts["peft_type"], facts["base_model"], facts["target_modules"])
    assert found == ("TRAINABLE_TOKENS", "tiny", ["embed_tokens"])
    assert facts["tensors"] == {"rows": "F32 [2, 3]"}


def test_a_scan_and_an_environment_are_shown_without_their_long_lists(tmp_path):
    write_json(tmp_path / "scan.json", {"format": "kslottery-scan/1", "before": "a", "tensors": [{}]})
    facts = describe(tmp_path / "scan.json")
    assert facts["before"] == "a"
    assert facts["matrices"] == 1
    assert facts["matrices_changed"] == 0
    table = {"name": "wte.weight", "embedding": True, "rows": 2000, "changed_rows": 1500, "significant_rows": 20}
    scan = {"format": "kslottery-scan/1", "tensors": [table | {"significant_share": 0.01}]}
    write_json(tmp_path / "scan.json", scan)
    embedding = describe(tmp_path)["input_embedding"]
    assert embedding == "wte.weight: 1,500 of 2,000 rows changed, 20 of them significantly (1.0% of all)"
    assert "tensors" not in facts
    assert describe(tmp_path)["files"] == ["scan.json"]
    record = {"packages": {"torch": "2.6"}, "system": {"cpu": "x"}, "seed": 0, "something else": 1}
    write_json(tmp_path / "environment.json", record)
    facts = describe(tmp_path / "environment.json")
    assert facts["packages"] == {"torch": "2.6"}
    assert "something else" not in facts


def test_the_installation_is_json_and_names_the_packages():
    facts = json.loads(json.dumps(describe_installation()))
    assert {"kslottery_fast", "torch", "transformers", "peft"} <= facts.keys()
    assert all(name.isidentifier() for name in facts)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_folder_has_its_vocabulary_dimension_and_whether_it_is_tied(tied, tiny_llama, tiny_tokenizer, tmp_path):
    model = tiny_llama(tied=tied)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    tiny_tokenizer.save_pretrained(tmp_path)
    facts = describe(tmp_path)
    assert facts["what"].startswith("a model; ")
    assert (facts["vocab_size"], facts["dimension"], facts["tied_embeddings"]) == (320, 32, tied)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    for file in tmp_path.iterdir():
        assert "model" in describe(file)["what"], file


def test_a_model_without_safetensors_is_described_by_its_configuration(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "llama", "vocab_size": 320, "hidden_size": 32})
    facts = describe(tmp_path)
    assert (facts["vocab_size"], facts["dimension"]) == (320, 32)
    assert "safetensors" in facts["weights"]
    write_json(tmp_path / "config.json", {"x": 1})
    with pytest.raises(InputError, match="but no model that save_pretrained wrote"):
        describe(tmp_path)


def test_checkpoints_claims_and_the_cache_are_explained(run, tmp_path, monkeypatch):
    part = run / "checkpoints" / "es.3.embed" / "checkpoint-25" / "optimizer.pt"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    assert "checkpoint of a training that is not finished" in describe(part)["what"]
    for folder in (part.parent, part.parents[1], part.parents[2]):
        assert describe(folder)["what"].startswith("checkpoints of trainings")
    with RunFolder(run).claims.holding("es.3.embed") as claim:
        assert describe(claim.path)["what"].startswith("the claim of a process")
        assert describe(claim.path)["pid"] == os.getpid()
        assert describe(claim.path.parent)["files"] == ["es.3.embed.1"]
    monkeypatch.setenv("KSLOTTERY_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "cache" / "wheels" / "django-5.2.19-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"x")
    assert describe(wheel)["what"] == "the pinned wheel of Django, read as data"
    assert describe(wheel.parent)["what"].startswith("the cache")


def test_a_person_reads_one_fact_on_a_line_and_json_has_names_without_spaces(run, capsys):
    assert cli.main(["info", str(run)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["stages", "finished", "3"] in lines
    assert ["next", "stage", "Embed", "Tuning"] in lines
    assert ["alpha", "0.05"] in lines
    assert cli.main(["info", str(run), "--json"]) == 0
    assert all(name.isidentifier() for name in json.loads(capsys.readouterr().out))

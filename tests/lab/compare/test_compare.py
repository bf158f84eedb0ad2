"""A whole comparison on a tiny model: what the arms are, what is shared, and that nothing finished is done again."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from kslottery_fast import __version__
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.experiment import plan
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.run_folder import RunFolder, read_header
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.specs import FACTS
from kslottery_fast.lab.report import products
from kslottery_fast.lab.report.products import PRODUCTS

SEEDS = (0, 1)


def stamps(output: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (output / "stages").glob("*/stage.json")}


def arms(summary: dict) -> dict:
    return summary["languages"]["es"]["arms"]


def rows(finished: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(finished / "stages" / stage / "rows.safetensors")


def evidence(finished: Path, seed: int) -> dict[str, torch.Tensor]:
    return load_file(finished / "stages" / f"es.{seed}.embed" / "evidence.safetensors")


def test_every_arm_of_every_seed_is_scored_in_both_templates_and_on_validation(finished, summary):
    for spec, arm in arms(summary).items():
        seeds = [""] if spec == "untuned" else [f"{seed}." for seed in SEEDS]
        assert len(arm["per_seed"]) == len(seeds)
        for seed in seeds:
            folder = finished / "stages" / f"es.{seed}{spec}.score"
            names = {path.name for path in folder.iterdir()}
            assert names == {"evaluation.json", "validation.json", "stage.json"}
            assert folder.with_name(f"es.{seed}{spec}.paraphrase").joinpath("paraphrased.json").exists()
    assert all((finished / name).exists() for name in PRODUCTS)


def test_untuned_corpus_and_embed_tuning_are_made_once_and_shared(finished):
    stages = {path.name for path in (finished / "stages").iterdir()}
    assert {"es.corpus", "es.untuned", "es.untuned.score"} <= stages
    shared = ("embed", "embed.score", "contribution")
    assert {f"es.{seed}.{stage}" for seed in SEEDS for stage in shared} <= stages
    assert not [name for name in stages if "untuned" in name and name.startswith(("es.0", "es.1"))]


@pytest.mark.parametrize("seed", SEEDS)
def test_each_selector_takes_the_rows_that_its_evidence_puts_first(finished, seed):
    facts = evidence(finished, seed)
    for arm, column in (("partial", "counts"), ("frequency", "frequency"), ("l2", "l2"), ("gradient", "gradient")):
        order = sorted(range(len(facts[column])), key=lambda i, column=column: (-facts[column][i].item(), i))
        expected = sorted(facts["token_ids"][order[:4]].tolist())
        assert rows(finished, f"es.{seed}.{arm}@4")["token_ids"].tolist() == expected, arm


@pytest.mark.parametrize("seed", SEEDS)
def test_arms_take_the_rows_of_largest_contribution_or_as_many_as_account_for_enough(finished, summary, seed):
    found = RowContributions.load(finished / "stages" / f"es.{seed}.contribution" / "contributions.safetensors")
    for arm in ("contribution@4", "transfer-contribution@4"):
        assert rows(finished, f"es.{seed}.{arm}")["token_ids"].tolist() == sorted(found.ranked[:4].tolist()), arm
    assert arms(summary)["transfer-l2@enough"]["rows"][seed] == len(found.enough(0.95))


def test_the_evidence_is_what_embed_tuning_did(finished, compare_world):
    facts, tuned = evidence(finished, 0), rows(finished, "es.0.embed")
    before = load_file(compare_world / "model" / "model.safetensors")["model.embed_tokens.weight"][tuned["token_ids"]]
    assert torch.equal(facts["token_ids"], tuned["token_ids"])
    assert facts["l2"] == pytest.approx((tuned["rows"] - before).double().norm(dim=1), rel=1e-5)
    assert (facts["gradient"] > 0).all()
    assert facts["trajectory"][-1].tolist() == facts["counts"].tolist()


def test_training_seeds_share_corpus_and_split_but_not_batches(finished):
    assert not torch.equal(rows(finished, "es.0.embed")["rows"], rows(finished, "es.1.embed")["rows"])
    assert torch.equal(evidence(finished, 0)["frequency"], evidence(finished, 1)["frequency"])
    first, second = (rows(finished, f"es.{seed}.random@4")["token_ids"].tolist() for seed in SEEDS)
    assert first != second


def test_transfer_copies_noise_moves_as_far_and_frozen_leaves_out_the_tickets(finished, compare_world):
    tuned, copied, noise = (rows(finished, f"es.0.{arm}") for arm in ("embed", "transfer@4", "noise@4"))
    tickets = rows(finished, "es.0.partial@4")["token_ids"]
    places = torch.searchsorted(tuned["token_ids"], tickets)
    assert torch.equal(copied["token_ids"], tickets)
    assert torch.equal(copied["rows"], tuned["rows"][places])
    before = load_file(compare_world / "model" / "model.safetensors")["model.embed_tokens.weight"][tickets]
    assert (noise["rows"] - before).norm(dim=1) == pytest.approx((copied["rows"] - before).norm(dim=1), rel=1e-4)
    assert not torch.allclose(noise["rows"], copied["rows"], atol=1e-3)
    frozen = rows(finished, "es.0.frozen@4")["token_ids"]
    assert sorted(frozen.tolist() + tickets.tolist()) == tuned["token_ids"].tolist()


def test_an_alpha_that_selects_nothing_is_the_untuned_model(finished, summary):
    empty = arms(summary)["partial@1e-06"]
    assert empty["rows"] == empty["trained_parameters"] == [0, 0]
    assert empty["scores"]["nll"]["value"] == arms(summary)["untuned"]["scores"]["nll"]["value"]
    assert empty["against_untuned"]["nll"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_what_takes_no_time_since_alpha_selects_nothing_teaches_the_estimate_nothing(finished):
    settings = ExperimentSettings.recorded(read_header(finished), finished)
    jobs = Experiment(settings, RunFolder(finished), RunConsole()).jobs()
    parts = [f"partial@1e-06{end}" for end in ("", ".score", ".paraphrase")]
    assert {job.stage for job in jobs if job.idle()} == {f"es.{seed}.{part}" for seed in SEEDS for part in parts}


def test_trained_numbers_are_counted_and_adapters_keep_to_their_budget(summary):
    found = {spec: arm["trained_parameters"][0] for spec, arm in arms(summary).items()}
    assert found["untuned"] == found["transfer@4"] == found["noise@4"] == 0
    assert found["partial@4"] == found["frequency@4"] == 4 * 32
    assert found["embed"] - found["frozen@4"] == 4 * 32
    assert found["lora@8"] == 2 * (32 + 32 + 32 + 16)  # rank 1 on q and v of both layers: the nearest to 8 * 32
    assert found["prefix@8"] == 8 * 32  # 4 virtual tokens, keys and values of 2 layers, 2 heads of 8
    assert found["full"] > 20_000


def test_full_tuning_lora_and_prefix_change_what_the_model_predicts_and_leave_no_weights_behind(finished, summary):
    untuned = arms(summary)["untuned"]["scores"]["nll"]["value"]
    for spec in ("full", "lora@8", "prefix@8"):
        assert abs(arms(summary)[spec]["scores"]["nll"]["value"] - untuned) > 1e-6, spec
    assert not list((finished / "stages").glob("es.*.full/weights.safetensors"))


def test_differences_are_means_over_seeds_and_the_decomposition_adds_up(summary):
    untuned = arms(summary)["untuned"]["per_seed"][0]
    for spec, arm in arms(summary).items():
        if spec == "untuned":
            continue
        for metric in ("nll", "bleu_raw", "chrf_first_line", "mean_chars"):
            expected = fmean(seed[metric] for seed in arm["per_seed"]) - untuned[metric]
            assert arm["against_untuned"][metric]["value"] == pytest.approx(expected), (spec, metric)
        parts = {name: found["value"] for name, found in arm["decomposition"].items()}
        assert parts["gain"] == pytest.approx(arm["against_untuned"]["bleu_raw"]["value"])
        assert parts["gain"] == pytest.approx(parts["quality"] + parts["stopping"])
        assert parts["quality"] == pytest.approx(arm["against_untuned"]["bleu_first_line"]["value"])


def test_differences_of_every_seed_stand_beside_their_mean(summary):
    for spec, arm in arms(summary).items():
        for other, name in (("untuned", "per_seed_against_untuned"), ("embed", "per_seed_against_embed")):
            if name not in arm:
                assert spec == "untuned" or (spec, other) == ("embed", "embed")
                continue
            seeds = arms(summary)[other]["per_seed"] * (1 if other == "embed" else len(SEEDS))
            for place, difference in enumerate(arm[name]):
                for metric, value in difference.items():
                    assert value == arm["per_seed"][place][metric] - seeds[place][metric]


def test_every_control_is_named_beside_partial_tuning_of_its_size_and_frequency_is_spoken_of(summary):
    language = summary["languages"]["es"]
    controls = {entry["control"]: entry for entry in language["controls"]}
    assert list(controls) == ["frequency@4", "random@4", "l2@4", "gradient@4", "contribution@4"]
    assert {entry["own"] for entry in controls.values()} == {"partial@4"}
    for name, entry in controls.items():
        seeds = zip(arms(summary)[name]["per_seed"], arms(summary)["partial@4"]["per_seed"], strict=True)
        expected = [control["nll"] - own["nll"] for control, own in seeds]
        assert [seed["nll"] for seed in entry["per_seed"]] == expected
        assert entry["difference"]["nll"]["value"] == pytest.approx(fmean(expected))


def test_every_selector_of_a_size_is_compared_with_frequency_and_ks_over_the_seeds(summary):
    language = summary["languages"]["es"]
    assert summary["selectors"] == language["selectors"]
    group = next(one for one in language["selectors"] if (one["size"], one["copied"]) == ("4", False))
    models = {one["selector"]: one for one in group["models"]}
    assert list(models) == ["ks", "frequency", "random", "l2", "gradient", "contribution"]
    assert {name: list(one["against"]) for name, one in models.items()} == {
        "ks": ["frequency"],
        "frequency": ["ks"],
        **{name: ["frequency", "ks"] for name in list(models)[2:]},
    }
    for one in models.values():
        own = [seed["nll"] for seed in arms(summary)[one["arms"][0]]["per_seed"]]
        assert one["nll"]["value"] == pytest.approx(fmean(own))
        for other, found in one["against"].items():
            theirs = [seed["nll"] for seed in arms(summary)[models[other]["arms"][0]]["per_seed"]]
            assert found["per_seed"] == [a - b for a, b in zip(own, theirs, strict=True)]
            assert found["nll"]["value"] == pytest.approx(fmean(found["per_seed"]))
            assert found["nll"]["low"] <= found["nll"]["value"] <= found["nll"]["high"]
            assert found["outcome"] in ("better", "worse", "tie")
    (sentence,) = (one for one in language["advice"] if one.startswith("With 4 trained rows, "))
    covered = [round(100 * fmean(arms(summary)[f"{name}@4"]["coverage"])) for name in ("partial", "frequency")]
    assert f"Coverage of the training tokens is {covered[0]}% for KS, {covered[1]}% for frequency, " in sentence


def test_the_answer_is_about_every_arm_of_chosen_rows_but_random_ones_on_validation(summary):
    found = summary["languages"]["es"]["recommendation"]
    assert summary["recommendation"] == found
    able = {spec for spec in arms(summary) if FACTS[re.split("[@:]", spec)[0]].selector not in (None, "random")}
    assert {one["arm"] for one in found["kept"]} == able > {"transfer@4", "frequency@4"}
    untuned, embed = (arms(summary)[spec]["validation_nll"]["value"] for spec in ("untuned", "embed"))
    for one in found["kept"]:
        share = (untuned - arms(summary)[one["arm"]]["validation_nll"]["value"]) / (untuned - embed)
        assert one["value"] == pytest.approx(share)
    assert f"Take {found['take']}" in summary["verdict"]


def test_what_an_arm_covers_is_the_share_of_training_tokens_whose_rows_it_changes(finished, summary):
    for seed in SEEDS:
        facts = evidence(finished, seed)
        counts = dict(zip(facts["token_ids"].tolist(), facts["frequency"].tolist(), strict=True))
        for spec, arm in arms(summary).items():
            if spec in ("untuned", "partial@1e-06"):
                assert set(arm["coverage"]) == {0.0}
            elif spec in ("full", "lora@8", "prefix@8"):
                assert set(arm["coverage"]) == {None}
            else:
                changed = rows(finished, f"es.{seed}.{spec}")["token_ids"].tolist()
                assert arm["coverage"][seed] == sum(map(counts.get, changed)) / sum(counts.values()), spec
    found = {spec: arm["coverage"][0] for spec, arm in arms(summary).items()}
    assert found["embed"] == 1.0
    assert found["frozen@4"] + found["partial@4"] == pytest.approx(1.0)
    assert found["frequency@4"] == max(found[spec] for spec in found if spec.endswith("@4") and spec != "frozen@4")


def test_a_fresh_comparison_gives_the_same_numbers_in_every_cell(grown, summary):
    """The comparison that grew shares seed 0 with the finished one of two seeds; each was trained by itself."""
    again = arms(grown.summary)
    for spec in ("untuned", "embed", "partial@4", "transfer@4"):
        assert again[spec]["per_seed"][0] == arms(summary)[spec]["per_seed"][0]
        assert again[spec]["rows"][0] == arms(summary)[spec]["rows"][0]
    tickets = (found["languages"]["es"]["tickets"] for found in (grown.summary, summary))
    first, second = ([(row["token_id"], row["statistic"]) for row in one["list"]] for one in tickets)
    assert first == second
    levels = [found["languages"]["es"]["certificates"]["0"]["levels"] for found in (grown.summary, summary)]
    assert levels[0] == levels[1]


def test_time_and_memory_of_an_arm_count_the_embed_tuning_that_it_needs(finished, summary):
    found, embed = arms(summary), arms(summary)["embed"]
    needs = {spec for spec, arm in found.items() if arm["needs_embed_tuning"]}
    by_what_embed_tuning_showed = {"partial@0.3", "partial@4", "partial@1e-06", "l2@4", "gradient@4", "frozen@4"}
    by_contribution = {"contribution@4", "transfer-contribution@4"}
    copied = {"transfer@4", "noise@4", "transfer-l2@enough"}
    assert needs == by_what_embed_tuning_showed | by_contribution | copied
    stages = [json.loads((finished / "stages" / f"es.{n}.contribution" / "stage.json").read_text()) for n in SEEDS]
    for spec, arm in found.items():
        seconds, peak = arm["seconds"], arm["peak_memory_mb"]
        assert len(seconds["making"]) == len(seconds["scoring"]) == len(arm["per_seed"])
        before = embed["seconds"]["making"] if spec in needs else [0] * len(seconds["making"])
        if spec in by_contribution:
            before = [sum(pair) for pair in zip(before, (stage["seconds"] for stage in stages), strict=True)]
        assert seconds["from_scratch"] == [sum(pair) for pair in zip(seconds["making"], before, strict=True)]
        others = [embed["peak_memory_mb"]["making"]] if spec in needs else []
        others += [stage["environment"]["peak_memory_mb"] for stage in stages] if spec in by_contribution else []
        assert peak["from_scratch"] == max(peak["making"], *others, 0)
        assert peak["scoring"] > 0
    record = json.loads((finished / "stages" / "es.0.embed" / "stage.json").read_text())
    assert record["environment"]["peak_memory_of"] == "stage"


def test_the_same_command_does_nothing_again_and_needs_nothing_for_it(finished, finished_arguments, monkeypatch):
    def missing(_: str) -> None:
        raise InputError("not installed")

    for name in ("bleu_metric", "check_peft"):
        monkeypatch.setattr(plan, name, missing)
    before, report = stamps(finished), (finished / "summary.json").stat().st_mtime_ns
    assert cli.main(finished_arguments) == 0
    assert stamps(finished) == before
    assert (finished / "summary.json").stat().st_mtime_ns == report


def test_a_larger_grid_does_only_what_is_new(grown):
    after = grown.stamps_after
    assert {name: after[name] for name in grown.stamps_before} == grown.stamps_before
    new = {name for name in after if name not in grown.stamps_before and name.startswith("es.")}
    assert new == {f"es.0.transfer@4{end}" for end in ("", ".score", ".paraphrase")}
    found = grown.summary
    assert set(found["languages"]) == {"es", "ca"}
    values = [found["languages"][code]["arms"]["embed"]["scores"]["nll"]["value"] for code in ("es", "ca")]
    assert found["mean"]["embed"]["scores"]["nll"]["value"] == pytest.approx(fmean(values))
    assert found["language_overlap"]["matrix"][0][0] == 1


def test_other_settings_in_the_same_folder_are_refused(arguments, grown, capsys):
    assert cli.main(arguments(grown.output, *grown.small, "--steps", "5")) == 2
    assert "steps: 3 there, 5 here" in capsys.readouterr().err


def test_the_numbers_of_a_language_do_not_depend_on_what_stands_beside_it(arguments, grown, capsys):
    embed = grown.summary["languages"]["es"]["arms"]["embed"]
    assert embed == grown.summary_before["languages"]["es"]["arms"]["embed"]
    swapped = [word.replace("es,ca", "ca,es") for word in grown.large]
    assert cli.main(arguments(grown.output, *swapped, "--json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert list(again["languages"]) == ["ca", "es"]
    assert again["languages"] == grown.summary["languages"]
    assert again["mean"]["embed"] == grown.summary["mean"]["embed"]


def test_products_of_another_grid_never_pass_for_those_of_this_one(arguments, grown, monkeypatch):
    """The small grid is finished; the large one is stopped after its scores.csv; then the small one comes again."""
    output = grown.output
    assert cli.main(arguments(output, *grown.small)) == 0
    write_text = products.write_text

    def stopped(path: Path, text: str) -> None:
        if path.name == "scores.tex":
            raise KeyboardInterrupt
        write_text(path, text)

    monkeypatch.setattr(products, "write_text", stopped)
    assert cli.main(arguments(output, *grown.large)) == 130
    assert {line["language"] for line in csv_lines(output)} == {"es", "ca", "mean"}
    assert (output / "rows-ca.csv").exists()
    monkeypatch.undo()
    assert cli.main(arguments(output, *grown.small)) == 0
    assert {line["language"] for line in csv_lines(output)} == {"es"}
    assert not [path.name for path in output.iterdir() if path.stem.endswith("-ca") or path.stem == "languages"]
    summary = output / "summary.json"  # nor do those of another version
    text = summary.read_text()
    summary.write_text(text.replace(f'"version": "{__version__}"', '"version": "0.0.1"'))
    assert cli.main(arguments(output, *grown.small)) == 0
    assert summary.read_text() == text


def test_kill_9_again_and_again_costs_at_most_one_stage_each_time(arguments, tmp_path, finished, summary):
    output = tmp_path / "killed"
    driver = Path(__file__).with_name("kill_each_stage.py")
    result = subprocess.run(
        [sys.executable, driver, *arguments(output, "--arms", "partial@4", "--seed", "0", "--effects", "0")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kills = result.stderr.splitlines().count("killed")
    assert kills == len(list((output / "stages").iterdir()))
    found = json.loads((output / "summary.json").read_text())["languages"]["es"]["arms"]
    for spec in ("untuned", "embed", "partial@4"):
        assert found[spec]["per_seed"][0] == arms(summary)[spec]["per_seed"][0]  # of the uninterrupted comparison
    assert not list(output.rglob("*.tmp"))


def test_a_tampered_ticket_file_is_refused(finished, arguments, tmp_path):
    from kslottery_fast.tickets.tickets import Tickets

    saved = json.loads((finished / "stages" / "es.0.certificate" / "tickets.json").read_text())
    assert len(Tickets.load(finished / "stages" / "es.0.certificate" / "tickets.json")) == len(saved["token_ids"])
    saved["token_ids"][0] = next(i for i in range(320) if i not in saved["token_ids"])
    (tmp_path / "tickets.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match="digest"):
        Tickets.load(tmp_path / "tickets.json")


def csv_lines(output: Path) -> list[dict[str, str]]:
    with (output / "scores.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))

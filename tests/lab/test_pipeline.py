"""The whole experiment on a tiny random model: what it leaves, and that kill -9 costs at most the stage at hand."""

import copy
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from kslottery_fast.lab.experiment.pipeline import PRODUCTS, STAGES
from kslottery_fast.lab.experiment.stages import MODELS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from kslottery_fast.lab.cli.main import main as cli
from kslottery_fast.rows.attach import attach_rows, get_rows, merge_rows
from kslottery_fast.tickets.tickets import Tickets

WORDS = {"house": "casa", "dog": "perro", "sea": "mar", "red": "rojo", "big": "grande", "file": "archivo"}
METRICS = {"nll", "bleu_raw", "bleu_first_line", "chrf_raw", "chrf_first_line", "ended", "mean_chars"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_llama, tiny_tokenizer):
    """A folder with a tiny tied model and a corpus of made-up pairs."""
    folder = tmp_path_factory.mktemp("world")
    tiny_llama(tied=True, initializer_range=0.1).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    numbers = random.Random(0)
    lines = set()
    while len(lines) < 60:
        words = numbers.sample(sorted(WORDS), 3)
        lines.add(" ".join(words) + f" {len(lines)}\t" + " ".join(WORDS[word] for word in words) + f" {len(lines)}")
    (folder / "pairs.tsv").write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
    return folder


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    """A run of seconds: alpha is generous so that a few steps give tickets."""
    sizes = {
        "train": 32,
        "validation": 4,
        "test": 8,
        "steps": 4,
        "batch-size": 8,
        "micro-batch-size": 4,
        "max-new-tokens": 8,
        "n-bootstrap": 20,
    }
    return [
        *("--model", str(world / "model"), "--corpus", str(world / "pairs.tsv"), "--output", str(output)),
        *(word for name, size in sizes.items() for word in (f"--{name}", str(size))),
        *("--alpha", "0.3", "--learning-rate", "0.05", "--dtype", "float32"),
        *more,
    ]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """An uninterrupted run, made in this process."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(["run", *arguments(world, output)]) == 0
    return output


def stable(output: Path) -> dict:
    """summary.json without times."""
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    del summary["seconds"]
    return summary


def test_a_run_leaves_every_product_and_the_documented_summary(finished):
    assert all((finished / name).exists() for name in PRODUCTS)
    summary = stable(finished)
    assert tuple(summary["models"]) == MODELS
    for scores in summary["models"].values():
        assert set(scores) == METRICS | {"trained_parameters"}
    assert {"count", "alpha", "selected_by", "token_ids"} <= set(summary["tickets"])
    assert summary["certificate"]["checked"]
    assert summary["findings"]


def test_trained_parameters_are_rows_times_dimension(finished):
    summary = stable(finished)
    models, tickets = summary["models"], summary["tickets"]
    assert models["untuned"]["trained_parameters"] == models["partial_transfer"]["trained_parameters"] == 0
    assert models["embed_tuning"]["trained_parameters"] == tickets["active_rows"] * tickets["dimension"]
    for name in ("partial_tuning", "frequency_tuning", "random_tuning"):
        assert models[name]["trained_parameters"] == tickets["count"] * tickets["dimension"]


def test_embed_tuning_learns_and_the_tickets_are_those_of_scipy(finished):
    from scipy.stats import ks_2samp

    summary = stable(finished)
    assert summary["models"]["embed_tuning"]["nll"] < summary["models"]["untuned"]["nll"]
    tuned = load_file(finished / "stages" / "embed_tuning" / "rows.safetensors")
    model = load_file(finished.parents[1] / _world_model(finished) / "model.safetensors")
    before = model["model.embed_tokens.weight"][tuned["token_ids"]]
    pvalues = [ks_2samp(x, y).pvalue for x, y in zip(before.numpy(), tuned["rows"].numpy(), strict=True)]
    expected = {int(i) for i, p in zip(tuned["token_ids"], pvalues, strict=True) if p < 0.3}
    assert summary["tickets"]["selected_by"] == "alpha"
    assert set(summary["tickets"]["token_ids"]) == expected
    assert expected


def _world_model(finished: Path) -> Path:
    return Path(json.loads((finished / "run.json").read_text())["settings"]["model"])


def test_tickets_file_rows_and_adapter_name_the_same_tokens(finished):
    tickets = Tickets.load(finished / "tickets.json")
    rows = load_file(finished / "tickets.safetensors")
    assert torch.equal(rows["token_ids"], tickets.token_ids)
    assert rows["embed_tuned"].shape == rows["partial_tuned"].shape == (len(tickets), tickets.dimension)
    config = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    # An input-only set on a tied model: PEFT's LoRA variant, with the head's own list.
    assert sorted(config["trainable_token_indices"]["model.embed_tokens"]) == sorted(tickets.token_ids.tolist())


def test_peft_loads_the_adapter_of_a_run_onto_the_tied_base_and_gives_the_logits_of_partial_tuning(finished):
    base = AutoModelForCausalLM.from_pretrained(_world_model(finished)).eval()
    rows = load_file(finished / "tickets.safetensors")
    ours = merge_rows(_with_rows(copy.deepcopy(base), rows["token_ids"], rows["partial_tuned"]))
    ids = torch.arange(320).reshape(10, 32)
    with torch.no_grad():
        expected, before = ours(ids).logits, base(ids).logits
        loaded = peft.PeftModel.from_pretrained(base, finished / "adapter").eval()(ids).logits
    assert torch.equal(loaded, expected)
    assert not torch.equal(loaded, before)


def _with_rows(model, token_ids, rows):
    attach_rows(model, token_ids)
    with torch.no_grad():
        get_rows(model).rows.copy_(rows)
    return model


def test_kill_9_in_every_stage_loses_at_most_that_stage(world, finished, tmp_path):
    output = tmp_path / "killed"
    driver = Path(__file__).with_name("kill_driver.py")
    result = subprocess.run(
        [sys.executable, driver, *arguments(world, output)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert stable(output) == stable(finished)
    # Every attempt after the first two took over one stage more; the last two had only the products to make.
    for count in range(1, len(STAGES)):
        assert f"{count} of {len(STAGES)} stages are finished already" in result.stderr
    assert f"{len(STAGES)} of {len(STAGES)} stages are finished already, none left" in result.stderr
    for name in PRODUCTS:
        assert (output / name).exists()
    assert not list(output.rglob("*.tmp"))


def test_a_finished_run_prints_its_table_without_loading_model_or_trainer(world, finished):
    code = (
        "import sys; from kslottery_fast.lab import cli; code = cli.main(sys.argv[1:]);"
        "print('transformers' in sys.modules); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "run", *arguments(world, finished)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Partial Tuning" in result.stdout
    assert str(finished / "report.html") in result.stdout
    assert result.stdout.splitlines()[-1] == "False"


def test_a_missing_product_is_made_again_and_is_the_same(world, finished):
    before = stable(finished)
    (finished / "report.html").unlink()
    (finished / "summary.json").unlink()
    assert cli.main(["run", *arguments(world, finished)]) == 0
    assert (finished / "report.html").exists()
    assert stable(finished) == before


def test_other_arguments_in_the_same_folder_are_refused_with_the_difference(world, finished, capsys):
    assert cli.main(["run", *arguments(world, finished, "--seed", "7")]) == 2
    error = capsys.readouterr().err
    assert "seed: 0 there, 7 here" in error
    assert error.count("\n") == 1


def test_an_alpha_that_selects_nothing_goes_on_with_top_k_and_says_so_everywhere(world, tmp_path, capsys):
    output = tmp_path / "run"
    more = ["--alpha", "1e-9", "--correction", "bonferroni", "--top-k", "3"]
    assert cli.main(["run", *arguments(world, output, *more)]) == 0
    printed = capsys.readouterr().out
    summary = stable(output)
    assert summary["tickets"]["selected_by"] == "top_k"
    assert summary["tickets"]["count"] == 3
    assert "At alpha = 1e-09 (Bonferroni) the KS test selects no row" in summary["findings"][0]
    assert "selects no row" in printed
    assert "selected none" in (output / "report.html").read_text(encoding="utf-8")
    tickets = Tickets.load(output / "tickets.json")
    assert (tickets.selected_by, tickets.correction) == ("top_k", None)


def test_json_prints_the_summary_alone_on_stdout(world, finished, capsys):
    assert cli.main(["run", *arguments(world, finished, "--json")]) == 0
    assert json.loads(capsys.readouterr().out)["tickets"] == stable(finished)["tickets"]


def test_report_makes_the_page_anew_and_refuses_an_unfinished_run(finished, tmp_path, capsys):
    page, environment = finished / "report.html", (finished / "environment.json").read_bytes()
    page.write_text("old", encoding="utf-8")
    assert cli.main(["report", str(finished)]) == 0
    assert page.read_text(encoding="utf-8") != "old"
    # How the run was made stays what it was: the page is new, the run is not.
    assert (finished / "environment.json").read_bytes() == environment
    assert json.loads(environment)["command"].startswith("kslottery run --model")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "run.json").write_text((finished / "run.json").read_text())
    assert cli.main(["report", str(unfinished)]) == 2
    assert f"only 0 of {len(STAGES)} stages are finished" in capsys.readouterr().err


def test_certify_checks_a_run_and_says_what_is_guaranteed(finished, tmp_path, capsys):
    assert cli.main(["certify", str(finished)]) == 0
    assert "Guarantee: with probability 95% over the draw of the sentences" in capsys.readouterr().out
    assert "The guarantee: with probability" in (finished / "report.html").read_text(encoding="utf-8")
    copied = tmp_path / "copy"
    shutil.copytree(finished, copied)
    path = copied / "stages" / "select" / "tickets.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"alpha": 0.3', '"alpha": 0.2'), encoding="utf-8")
    assert cli.main(["certify", str(copied)]) == 2
    assert "digest" in capsys.readouterr().err

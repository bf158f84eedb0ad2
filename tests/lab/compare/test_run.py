"""``kslottery run``: the default experiment, its numbers, its folder, and what is seen of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.evaluation.encoding import encode
from kslottery_fast.evaluation.evaluate import evaluate
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.data.corpora import load_corpus
from kslottery_fast.lab.data.prompts import to_examples
from kslottery_fast.lab.experiment.training import Recipe, train_rows
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows
from kslottery_fast.tickets.select import ks_select
from kslottery_fast.tickets.tickets import Tickets

SIZES = {"train": 32, "validation": 4, "test": 8, "steps": 6, "batch-size": 8, "micro-batch-size": 4}
SIZES |= {"max-new-tokens": 8, "n-bootstrap": 20}
SEED = 3
MODELS = ("untuned", "embed", "transfer@tickets", "partial@tickets", "frequency@tickets", "random@tickets")
COPIES = ("transfer-contribution@18", "transfer-contribution@64", "transfer-contribution@200")
ARMS = (*MODELS[:3], *COPIES, "partial@tickets", "contribution@tickets", *MODELS[4:])
JOBS = 3 + 2 * len(ARMS) - 5  # without the five models that take no time to make
STAGES = 3 + 2 * len(ARMS)  # the corpus, the contributions, every model and its scores, the certificate


@pytest.fixture(scope="module")
def run_arguments(compare_world):
    """``run_arguments(output, "--more", ...)``: a run of seconds."""

    def make(output: Path, *more: str) -> list[str]:
        return [
            *("run", "--model", str(compare_world / "model"), "--corpus", str(compare_world / "pairs.tsv")),
            *(word for name, size in SIZES.items() for word in (f"--{name}", str(size))),
            *("--alpha", "0.3", "--learning-rate", "0.05", "--dtype", "float32", "--seed", str(SEED)),
            *("--split-seed", str(SEED)),
            *("--output", str(output), *more),
        ]

    return make


@pytest.fixture(scope="module")
def run(run_arguments, tmp_path_factory) -> Path:
    """An uninterrupted run, made in this process."""
    output = tmp_path_factory.mktemp("run") / "run"
    assert cli.main(run_arguments(output)) == 0
    return output


def stage(output: Path, name: str) -> Path:
    shared = name.startswith(("untuned", "corpus"))
    return output / "stages" / (f"es.{name}" if shared else f"es.{SEED}.{name}")


def stamps(output: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (output / "stages").glob("*/stage.json")}


class ByHand:
    """The experiment step by step, with the library's functions and no arm, cell or job."""

    def __init__(self, world: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(world / "model")
        corpus = load_corpus(
            str(world / "pairs.tsv"), source="en", target="es", train=32, validation=4, test=8, seed=SEED
        )
        self.train, self.test = (to_examples(part, "English", "Spanish") for part in (corpus.train, corpus.test))
        self.features = [encode(self.tokenizer, example) for example in self.train]
        self.before = self.model.get_input_embeddings().weight.detach().clone()

    def tuned(self, ids: torch.Tensor, rate: float, *, lazy: bool = False):
        sizes = {"steps": 6, "batch_size": 8, "micro_batch_size": 4}
        recipe = Recipe(pad_token_id=2, **sizes, learning_rate=rate, seed=SEED, lazy=lazy)
        return train_rows(self.model, ids, self.features, recipe)

    def scores(self, ids=None, rows=None) -> dict:
        if ids is not None:
            attach_rows(self.model, ids)
            with torch.no_grad():
                get_rows(self.model).rows.copy_(rows)
        options = {"max_new_tokens": 8, "n_bootstrap": 20, "seed": SEED}
        found = evaluate(self.model, self.tokenizer, self.test, **options)
        if ids is not None:
            detach_rows(self.model)
        return json.loads(json.dumps(found.to_dict()))


@pytest.fixture(scope="module")
def by_hand(compare_world) -> SimpleNamespace:
    """Tickets and scores of the six models."""
    lab = ByHand(compare_world)
    seen = torch.tensor([token for feature in lab.features for token in feature["input_ids"][:-1]])
    counts = torch.bincount(seen, minlength=320)
    active = counts.nonzero().flatten()
    embed = lab.tuned(active, 0.05, lazy=True)
    after = lab.before.clone()
    after[embed.token_ids] = embed.rows
    tickets = ks_select(lab.before, after, 0.3)
    k = len(tickets)
    drawn = active[torch.randperm(len(active), generator=torch.Generator().manual_seed(SEED))[:k]].sort().values
    chosen = {
        "partial@tickets": tickets.token_ids,
        "frequency@tickets": counts.argsort(descending=True, stable=True)[:k],
        "random@tickets": drawn,
    }
    trained = {name: lab.tuned(ids, 0.01) for name, ids in chosen.items()}
    scores = {
        "untuned": lab.scores(),
        "embed": lab.scores(embed.token_ids, embed.rows),
        "transfer@tickets": lab.scores(tickets.token_ids, after[tickets.token_ids]),
        **{name: lab.scores(rows.token_ids, rows.rows) for name, rows in trained.items()},
    }
    return SimpleNamespace(tickets=tickets, scores=scores, trained={"embed": embed, **trained})


def test_the_numbers_are_those_of_the_librarys_functions_bit_for_bit(run, by_hand):
    assert Tickets.load(stage(run, "certificate") / "tickets.json") == by_hand.tickets
    assert 4 < len(by_hand.tickets) < 320
    for name, rows in by_hand.trained.items():
        found = load_file(stage(run, name) / "rows.safetensors")
        assert torch.equal(found["token_ids"], rows.token_ids), name
        assert torch.equal(found["rows"], rows.rows), name
        assert json.loads((stage(run, name) / "losses.json").read_text()) == rows.losses
    for name in MODELS:
        assert json.loads((stage(run, f"{name}.score") / "evaluation.json").read_text()) == by_hand.scores[name], name
    assert len({json.dumps(scores) for scores in by_hand.scores.values()}) == len(MODELS)


def test_the_best_other_selector_trains_as_many_rows_as_there_are_tickets_and_its_copies_are_of_several_sizes(
    run, by_hand, compare_world
):
    tuned = load_file(stage(run, "embed") / "rows.safetensors")
    worth = RowContributions.load(stage(run, "contribution") / "contributions.safetensors")
    order = worth.contribution.argsort(descending=True, stable=True)
    ranked = worth.token_ids[order]
    trained = ByHand(compare_world).tuned(ranked[: len(by_hand.tickets)], 0.01)
    found = load_file(stage(run, "contribution@tickets") / "rows.safetensors")
    assert torch.equal(found["token_ids"], trained.token_ids)
    assert torch.equal(found["rows"], trained.rows)
    active = len(tuned["token_ids"])
    for name, size in zip(COPIES, (18, 64, 200), strict=True):
        copied = load_file(stage(run, name) / "rows.safetensors")
        expected = ranked[:size].sort().values if size < active else tuned["token_ids"]
        assert torch.equal(copied["token_ids"], expected), name
        assert torch.equal(copied["rows"], tuned["rows"][torch.searchsorted(tuned["token_ids"], expected)])


def test_a_run_scores_with_its_own_template_alone_and_looks_at_no_single_tickets(run):
    names = {path.name for path in (run / "stages").iterdir()}
    assert len(names) == STAGES
    assert names == {stage(run, f"{name}{end}").name for name in ARMS for end in ("", ".score")} | {
        stage(run, name).name for name in ("corpus", "certificate", "contribution")
    }


def test_the_tickets_are_those_of_scipy(run, compare_world):
    from scipy.stats import ks_2samp

    tuned = load_file(stage(run, "embed") / "rows.safetensors")
    before = load_file(compare_world / "model" / "model.safetensors")["model.embed_tokens.weight"][tuned["token_ids"]]
    pvalues = [ks_2samp(x, y).pvalue for x, y in zip(before.numpy(), tuned["rows"].numpy(), strict=True)]
    expected = {int(i) for i, p in zip(tuned["token_ids"], pvalues, strict=True) if p < 0.3}
    found = Tickets.load(stage(run, "certificate") / "tickets.json")
    assert found.selected_by == "alpha"
    assert set(found.token_ids.tolist()) == expected


def test_peft_loads_the_adapter_of_partial_tuning_onto_the_tied_base_and_gives_its_logits(run, compare_world):
    folder = stage(run, "partial@tickets")
    base, ours = (AutoModelForCausalLM.from_pretrained(compare_world / "model").eval() for _ in range(2))
    rows, ids = load_file(folder / "rows.safetensors"), torch.arange(320).reshape(10, 32)
    attach_rows(ours, rows["token_ids"])
    with torch.no_grad():
        get_rows(ours).rows.copy_(rows["rows"])
        expected, before = ours(ids).logits, base(ids).logits
        loaded = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()(ids).logits
    assert torch.equal(loaded, expected)
    assert not torch.equal(loaded, before)


def test_an_alpha_that_selects_nothing_goes_on_with_top_k(run_arguments, tmp_path):
    output = tmp_path / "run"
    assert (
        cli.main(run_arguments(output, "--alpha", "1e-9", "--correction", "bonferroni", "--fallback-top-k", "3")) == 0
    )
    tickets = Tickets.load(stage(output, "certificate") / "tickets.json")
    assert (len(tickets), tickets.selected_by, tickets.correction) == (3, "top_k", None)
    for name in (*MODELS[2:], "contribution@tickets"):
        assert json.loads((stage(output, name) / "arm.json").read_text())["rows"] == 3


def test_a_top_k_larger_than_the_table_takes_every_row_that_moved(run_arguments, tmp_path):
    output = tmp_path / "run"
    sizes = ("--train", "8", "--test", "4", "--steps", "1", "--max-new-tokens", "2")
    assert cli.main(run_arguments(output, "--alpha", "1e-9", "--fallback-top-k", "100000", *sizes)) == 0
    selected = json.loads((output / "summary.json").read_text())["tickets"]
    assert selected["count"] == selected["active_rows"] > 0


def test_a_finished_run_prints_its_table_without_loading_model_or_trainer(run, run_arguments):
    code = (
        "import sys; from kslottery_fast.lab.cli.main import main; code = main(sys.argv[1:]);"
        "print('transformers' in sys.modules); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *run_arguments(run)], capture_output=True, text=True, check=True
    )
    assert "Partial Tuning" in result.stdout
    assert str(run / "report.html") in result.stdout
    assert result.stdout.splitlines()[-1] == "False"
    assert f"{STAGES} of {STAGES} stages are finished already, none left" in result.stderr


def test_a_missing_product_is_made_again_and_is_the_same(run, run_arguments):
    before = (run / "summary.json").read_bytes()
    (run / "report.html").unlink()
    (run / "summary.json").unlink()
    assert cli.main(run_arguments(run)) == 0
    assert (run / "report.html").exists()
    assert (run / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--split-seed", "7"), f"seed: {SEED} there, 7 here"),
        (("--seed", "7"), f"seed: {SEED} there, 7 here"),
        (("--target", "ca"), "target: 'es' there, 'ca' here"),
    ],
)
def test_another_seed_or_language_in_the_same_folder_is_refused_with_the_difference(
    run, run_arguments, capsys, more, message
):
    assert cli.main(run_arguments(run, *more)) == 2
    error = capsys.readouterr().err
    assert f"belongs to a run with other settings ({message})" in error
    assert error.count("\n") == 1


def test_json_prints_the_summary_alone_on_stdout(run, run_arguments, capsys):
    assert cli.main(run_arguments(run, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "summary.json").read_text(encoding="utf-8"))


def test_report_makes_the_products_anew_and_refuses_an_unfinished_run(run, tmp_path, capsys):
    page, environment = run / "report.html", (run / "environment.json").read_bytes()
    page.write_text("old", encoding="utf-8")
    before = stamps(run)
    assert cli.main(["report", str(run), "--force"]) == 0
    assert page.read_text(encoding="utf-8") != "old"
    # How the run was made stays what it was: the page is new, the run is not.
    assert (run / "environment.json").read_bytes() == environment
    assert stamps(run) == before
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    shutil.rmtree(stage(unfinished, "random@tickets.score"))
    assert cli.main(["report", str(unfinished)]) == 2
    assert f"only {STAGES - 1} of {STAGES} stages are finished" in capsys.readouterr().err


def test_the_summary_has_the_keys_of_version_0_1_and_the_values_of_the_stages(run, by_hand):
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    names = ("untuned", "embed_tuning", "partial_transfer", "partial_tuning", "frequency_tuning", "random_tuning")
    assert [name for name in summary["models"] if "@" not in name] == list(names)
    assert list(summary["models"]) == list(summary["intervals"])
    assert [name for name in summary["models"] if "@" in name] == [*COPIES, "contribution@tickets"]
    tickets = summary["tickets"]
    trained = (0, tickets["active_rows"], 0, *[tickets["count"]] * 3)
    for name, spec, rows in zip(names, MODELS, trained, strict=True):
        scores = {metric: by_hand.scores[spec][metric] for metric in summary["intervals"][name]}
        expected = {metric: found["value"] for metric, found in scores.items()}
        assert summary["models"][name] == {**expected, "trained_parameters": rows * tickets["dimension"]}
        assert summary["intervals"][name] == {metric: [one["low"], one["high"]] for metric, one in scores.items()}
    assert tickets["token_ids"] == by_hand.tickets.token_ids.tolist()
    assert (tickets["threshold"], tickets["alpha"]) == (by_hand.tickets.threshold, 0.3)
    assert summary["certificate"] == json.loads((stage(run, "certificate") / "certificate.json").read_text())
    assert set(summary["seconds"]) == {path.name for path in (run / "stages").iterdir()}
    assert "paraphrased" not in json.dumps(summary["languages"])
    assert summary["findings"][0] == summary["verdict"]
    assert any(sentence.startswith("At alpha = 0.3 the KS test selects") for sentence in summary["findings"])


def test_tickets_file_rows_and_adapter_of_a_run_name_the_same_tokens(run, by_hand):
    assert Tickets.load(run / "tickets.json") == Tickets.load(run / "adapter" / "tickets.json")
    rows, ids = load_file(run / "tickets.safetensors"), by_hand.tickets.token_ids
    assert torch.equal(rows["token_ids"], ids)
    for name, part in (("embed_tuned", "embed"), ("partial_tuned", "partial@tickets")):
        trained = by_hand.trained[part]
        order = trained.token_ids.argsort()
        places = order[torch.searchsorted(trained.token_ids[order], ids)]
        assert torch.equal(rows[name], trained.rows[places])
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    # An input-only set on a tied model: PEFT's LoRA variant, with the head's own list.
    assert sorted(config["trainable_token_indices"]["model.embed_tokens"]) == sorted(ids.tolist())


def test_certify_checks_a_run_and_says_what_is_guaranteed(run, tmp_path, capsys):
    assert cli.main(["certify", str(run)]) == 0
    assert "Guarantee: with probability 95% over the draw of the sentences" in capsys.readouterr().out
    copied = shutil.copytree(run, tmp_path / "copy")
    path = stage(copied, "certificate") / "tickets.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"alpha": 0.3', '"alpha": 0.2'), encoding="utf-8")
    assert cli.main(["certify", str(copied)]) == 2
    assert "digest" in capsys.readouterr().err


def test_scores_are_shown_as_they_come_and_once_more_at_the_start_of_a_call_that_goes_on(
    run, run_arguments, tmp_path, capsys
):
    again = shutil.copytree(run, tmp_path / "again")
    for name in ("random@tickets", "random@tickets.score", "certificate"):
        shutil.rmtree(stage(again, name))
    assert cli.main(run_arguments(again)) == 0
    said = capsys.readouterr().err
    copies = (f"Contribution Transfer @{size}" for size in (18, 64, 200))
    labels = ("Untuned", "Embed Tuning", "Partial Transfer", *copies, "Partial Tuning", "Rows by contribution")
    labels += ("Frequency Tuning", "Random rows")
    lines = said.splitlines()
    places = [
        next(
            i
            for i, line in enumerate(lines)
            if line.startswith(label) and nll(again, name) in "".join(lines[i : i + 2])
        )
        for label, name in zip(labels, ARMS, strict=True)
    ]
    trains = next(i for i, line in enumerate(lines) if line.startswith(f"[{JOBS - 2}/{JOBS}] Random rows"))
    certifies = next(i for i, line in enumerate(lines) if line.startswith(f"[{JOBS}/{JOBS}] certifying"))
    assert places == sorted(places)
    assert places[-2] < trains < places[-1] < certifies
    assert cli.main(run_arguments(again)) == 0  # nothing to do: the table alone
    assert nll(again, "embed") not in capsys.readouterr().err


def nll(output: Path, name: str) -> str:
    found = json.loads((stage(output, f"{name}.score") / "evaluation.json").read_text())
    return f"{found['nll']['value']:.3f}"


def test_compare_takes_up_the_folder_of_a_run_and_run_that_of_compare(run, run_arguments, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "both")
    words = run_arguments(folder)
    compare = ["compare", *words[1 : words.index("--seed")], *words[words.index("--seed") + 2 :]]
    grid = ["--arms", "partial@tickets,transfer@2", "--seed", f"{SEED},4", "--effects", "1"]
    before = stamps(folder)
    assert cli.main([*compare, *grid]) == 0
    after = stamps(folder)
    assert {name: after[name] for name in before} == before
    scored = [name for name in after if name.endswith(".score")]
    assert f"es.{SEED}.transfer@2.score" in scored
    assert "es.4.partial@tickets.score" in scored
    assert {f"es.{SEED}.embed.paraphrase", "es.untuned.paraphrase"} <= set(after)  # what a run leaves out
    capsys.readouterr()
    assert cli.main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert json.loads((folder / "summary.json").read_text())["grid"]["seeds"] == [SEED, 4]
    assert cli.main(run_arguments(folder)) == 0
    assert stamps(folder) == after
    again, fresh = (json.loads((each / "summary.json").read_text()) for each in (folder, run))
    assert again["grid"] == fresh["grid"]
    assert again["languages"] == fresh["languages"]  # nothing of the effects that compare looked at


def test_run_goes_on_in_the_folder_of_any_language_that_has_stages_there(run, run_arguments, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    header = json.loads((folder / "run.json").read_text())
    header["grid"]["targets"] = ["ca"]  # of the last call, which was about another language of the folder
    (folder / "run.json").write_text(json.dumps(header))
    assert cli.main(run_arguments(folder)) == 0
    (folder / "stages" / "ca.corpus").mkdir()
    assert cli.main(run_arguments(folder, "--target", "fr")) == 2
    assert "(target: 'ca', 'es' there, 'fr' here)" in capsys.readouterr().err


def test_the_language_binds_only_once_a_stage_is_finished(run, run_arguments, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    (folder / "stages" / ".es.corpus.abc.tmp").mkdir(parents=True)
    shutil.copy(run / "run.json", folder)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kslottery_fast.lab.experiment.plan.Experiment.work", interrupted)
    assert cli.main(run_arguments(folder, "--target", "ca")) == 130  # it began


def test_a_run_killed_in_the_middle_of_embed_tuning_goes_on_with_the_same_bits(run, run_arguments, tmp_path):
    output = tmp_path / "killed"
    driver = Path(__file__).with_name("kill_training.py")
    result = subprocess.run(
        [sys.executable, driver, *run_arguments(output)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    kills = [line for line in result.stderr.splitlines() if line.startswith("killed at ")]
    assert kills == ["killed at 3, begun at 1", "killed at 5, begun at 3"]
    for file in ("rows.safetensors", "losses.json", "evidence.safetensors", "evidence.json", "arm.json"):
        assert same(stage(run, "embed") / file, stage(output, "embed") / file), file
    assert not (output / "checkpoints").exists()


def same(first: Path, second: Path) -> bool:
    if first.suffix != ".safetensors":
        return first.read_bytes() == second.read_bytes()
    tensors, others = load_file(first), load_file(second)
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)

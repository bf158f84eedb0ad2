"""Every example runs, and leaves behind what it promises."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration
from two_processes import free_port, run_on_two_processes

from kslottery_fast.integrations.trainer_checkpoint import ROWS_FILE
from kslottery_fast.rows.adapter_file import load_adapter
from kslottery_fast.rows.attach import get_rows
from kslottery_fast.rows.tables import embedding_table

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TOKENS = " =aeo"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run an example as `python examples/NAME.py FOLDER` would; returns its variables."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # sentence-transformers would ask the Hub whether the folder of its base model is a repository there.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def run(name: str) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import tiny

    return tiny


def moved_rows(model: torch.nn.Module, base: torch.nn.Module) -> list[int]:
    return (embedding_table(model) != embedding_table(base)).any(dim=1).nonzero().flatten().tolist()


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def test_every_example_has_a_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    names = [path.name for path in EXAMPLES.iterdir() if path.is_file() and path.name != "tiny.py"]
    assert len(names) >= 7
    assert [name for name in names if f'"{name}"' not in tested] == []


@pytest.mark.parametrize(("name", "folder"), [("plain_loop.py", "."), ("sft.py", "model")])
def test_training_writes_an_ordinary_model_with_these_rows_moved_and_a_lower_loss(run, tiny, tmp_path, name, folder):
    names = run(name)
    base = tiny.model()
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
    assert moved_rows(tuned, base) == sorted(tiny.tokenizer()(TOKENS)["input_ids"])
    batch = {key: torch.tensor([row[key] for row in tiny.examples(6)]) for key in tiny.examples(1)[0]}
    with torch.no_grad():
        assert tuned(**batch).loss < base(**batch).loss - 0.1
    assert type(names["model"]) is type(base)


def test_the_trainer_example_selects_tickets_and_trains_them_alone(run, tiny, tmp_path):
    tickets = run("trainer.py")["tickets"]
    assert len(tickets) > 0
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert moved_rows(tuned, tiny.model()) == sorted(tickets.token_ids.tolist())
    assert (tmp_path / "partial" / "checkpoint-20" / ROWS_FILE).is_file()


def test_lora_and_tickets_train_together_and_are_saved_apart(run, tiny, tmp_path):
    names = run("lora_and_tickets.py")
    assert all(bool((weight != 0).any()) for key, weight in names["model"].named_parameters() if "lora_B" in key)
    model = load_adapter(tiny.model(), tmp_path / "rows")
    assert get_rows(model).token_ids.tolist() == tiny.tokenizer()(TOKENS)["input_ids"]
    assert not torch.equal(get_rows(model).rows, embedding_table(model)[get_rows(model).token_ids])
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["load_in_peft.py", "several_sets.py"])
def test_an_example_that_checks_itself(run, name):
    run(name)


def test_new_chat_tokens_are_learned_as_outputs_and_no_other_row_moves(run, tiny, tmp_path):
    names = run("new_chat_tokens.py")
    assert names["after"] < names["before"] - 2
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(embedding_table(tuned)[:259], embedding_table(tiny.model()))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("<|assistant|>casa<|end|>")["input_ids"][::5] == [260, 261]


def test_textual_inversion_moves_the_prompts_towards_the_images(run, tiny, tmp_path):
    names = run("textual_inversion.py")
    assert names["after"] > names["before"] + 0.2
    learned = load_file(tmp_path / "learned_embeds.safetensors")["<my-cat>"]
    model, tokenizer = tiny.clip()
    pieces = tokenizer("cat")["input_ids"]
    assert learned.shape == (32,)
    assert not torch.allclose(learned, embedding_table(model)[pieces].mean(dim=0))


def test_relation_tokens_lower_the_loss_of_a_sentence_transformer_that_loads_again(run, tmp_path):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer  # slow; not in make oldest

    names = run("relation_tokens.py")
    assert names["losses"][-1] < names["losses"][0] - 0.3
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    queries = [query for query, _ in names["pairs"]]
    assert (loaded.encode(queries) == names["model"].encode(queries)).all()


def test_a_new_language_code_lowers_the_loss_and_is_an_adapter_of_one_row(run, tiny, tmp_path):
    names = run("new_language.py")
    assert names["losses"][-1] < names["losses"][0] - 0.3
    assert names["made"][:, 1].tolist() == [names["catalan"]] * 6
    model, tokenizer = tiny.translator()
    model.resize_token_embeddings(len(tokenizer) + 1)
    assert get_rows(load_adapter(model, tmp_path)).token_ids.tolist() == [names["catalan"]]


def test_a_vision_language_model_learns_to_say_its_new_words(run, tiny, tmp_path):
    names = run("vision_language.py")
    assert names["before"] == 0
    assert names["after"] > 0.8
    tuned, (base, _) = LlavaForConditionalGeneration.from_pretrained(tmp_path), tiny.vision_language()
    assert torch.equal(tuned.get_output_embeddings().weight[:260], base.get_output_embeddings().weight)
    assert torch.equal(embedding_table(tuned)[:260], embedding_table(base))


def test_accelerate_launches_two_processes(tiny, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", free_port()]
    command = [*launch, "--config_file", EXAMPLES / "accelerate_ddp.yaml", EXAMPLES / "trainer.py", tmp_path]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tickets of 259 rows") == 2  # both processes, the same set
    tokens = re.findall(r"tokens: \(.*?',?\)", done.stdout)  # the lines of two processes may run into each other
    assert len(tokens) == 2
    assert tokens[0] == tokens[1]
    assert "'epoch': '3.333'" in done.stdout  # 20 steps of 2 x 4 of 48 examples
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert 0 < len(moved_rows(tuned, tiny.model())) < 20


def test_fsdp2_saves_the_rows_as_an_adapter(tiny, tmp_path):
    run_on_two_processes(EXAMPLES / "fsdp2.py", tmp_path / "adapter")
    model = load_adapter(tiny.model(tied=False), tmp_path / "adapter")
    start = embedding_table(model)[get_rows(model).token_ids]
    assert (get_rows(model).rows - start).abs().amax(dim=1).min() > 0.1

"""What a TicketTrainer gives away: adapters from checkpoints, from save_model, and on a Hub that is a folder here."""

from __future__ import annotations

import copy
import shutil
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import batch, logits, make
from tiny_trainer import TOKENS, arguments, dataset, train
from torch import nn

from kslottery_fast import add_rows, add_tokens, attach_rows, get_rows, load_adapter, merge_rows, row_sets, use_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.trainer import TicketTrainer
from kslottery_fast.integrations.trainer_adapter import attach_checkpoint, checkpoint_to_adapter
from kslottery_fast.integrations.trainer_checkpoint import ROWS_FILE, load_checkpoint, save_checkpoint

LORA = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[nn.Module, Path]:
    folder = tmp_path_factory.mktemp("trained")
    model = make("llama")
    train(model, folder, max_steps=3, output="tied")
    return model, folder / "checkpoint-3"


def same_state(model: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_becomes_a_model_in_one_call(trained):
    model, checkpoint = trained
    fresh = attach_checkpoint(make("llama"), checkpoint)
    assert torch.equal(get_rows(fresh).rows, get_rows(model).rows)
    inputs = batch(model)
    assert torch.equal(logits(fresh, inputs), logits(model, inputs))
    torch.testing.assert_close(logits(merge_rows(fresh), inputs), logits(model, inputs))


def test_a_checkpoint_becomes_an_adapter_in_one_call(trained, tmp_path):
    model, checkpoint = trained
    base = make("llama")
    checkpoint_to_adapter(base, checkpoint, tmp_path / "adapter", base_model_name_or_path="org/model")
    assert same_state(base, make("llama"))
    assert all(parameter.requires_grad for parameter in base.parameters())
    inputs = batch(model)
    assert torch.equal(logits(load_adapter(make("llama"), tmp_path / "adapter"), inputs), logits(model, inputs))
    other = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(other.eval(), inputs), logits(model, inputs))


def test_the_adapter_of_a_checkpoint_keeps_the_strings_of_its_tokens(tiny_llama, tiny_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    model = tiny_llama(tied=True)
    ids = add_tokens(model, tokenizer, ["<new>"])
    base = copy.deepcopy(model)
    save_checkpoint(attach_rows(model, ids), tmp_path)
    checkpoint_to_adapter(base, tmp_path, tmp_path / "adapter", tokenizer=tokenizer)
    fresh = copy.deepcopy(tiny_tokenizer)
    loaded = load_adapter(tiny_llama(tied=True), tmp_path / "adapter", tokenizer=fresh)
    assert fresh.convert_tokens_to_ids(["<new>"]) == ids == get_rows(loaded).token_ids.tolist()


def test_all_sets_of_a_checkpoint_and_other_parameters_come_back(tmp_path):
    model = add_rows(attach_rows(make("llama"), TOKENS, name="de"), "fr", [12, 20])
    model.model.norm.weight.requires_grad_(True)
    with torch.no_grad():
        get_rows(model).row_sets["fr"].rows.add_(1.0)
    train(use_rows(model, "fr"), tmp_path, tickets=None, max_steps=3)
    fresh = attach_checkpoint(make("llama"), tmp_path / "checkpoint-3")
    assert row_sets(fresh) == ("fr", "de")
    assert get_rows(fresh).row_sets.active == "fr"
    assert same_state(fresh, model)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in fresh.named_parameters() if parameter.requires_grad} == trains
    with pytest.raises(InputError, match=r"not rows \(model\.norm\.weight, .*load all of it with attach_checkpoint"):
        checkpoint_to_adapter(make("llama"), tmp_path / "checkpoint-3", tmp_path / "adapter")


def test_lora_beside_the_rows_comes_back_onto_a_model_with_lora(tmp_path):
    def with_lora() -> nn.Module:
        torch.manual_seed(0)
        return peft.get_peft_model(make("llama"), LORA)

    model = with_lora()
    train(model, tmp_path, max_steps=3)
    fresh = attach_checkpoint(with_lora(), tmp_path / "checkpoint-3")
    assert same_state(fresh, model)
    plain = make("llama")
    with pytest.raises(InputError, match=r"that the model lacks .*with the same adapters of PEFT"):
        attach_checkpoint(plain, tmp_path / "checkpoint-3")
    assert same_state(plain, make("llama"))


def test_a_checkpoint_that_does_not_fit_leaves_the_model_as_it_was(trained, tmp_path):
    _, checkpoint = trained
    for model, message in (
        (make("llama", tied=False), "shares the input table"),
        (attach_rows(make("llama"), TOKENS), "attached rows already"),
        (nn.Embedding(7, 16), "outside"),
    ):
        before = copy.deepcopy(model)
        with pytest.raises(InputError, match=message):
            attach_checkpoint(model, checkpoint)
        assert same_state(model, before)
    with pytest.raises(InputError, match=rf"no {ROWS_FILE}.* it holds checkpoint-3, pass one of these"):
        checkpoint_to_adapter(make("llama"), checkpoint.parent, tmp_path / "adapter")
    with pytest.raises(InputError, match="no rows are attached"):
        load_checkpoint(make("llama"), checkpoint)


def test_save_model_writes_an_adapter_beside_the_rows_and_checkpoints_do_not(trained, tmp_path):
    model = copy.deepcopy(trained[0])
    trainer = TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset())
    trainer.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / ROWS_FILE).is_file()
    inputs = batch(model)
    assert torch.equal(logits(load_adapter(make("llama"), tmp_path / "final"), inputs), logits(model, inputs))
    assert not (trained[1] / "adapter_config.json").exists()


def test_save_model_writes_lora_and_rows_as_one_adapter(tmp_path):
    torch.manual_seed(0)
    model = peft.get_peft_model(make("llama"), LORA)
    trainer = train(model, tmp_path, max_steps=2, learning_rate=0.1)
    trainer.save_model(str(tmp_path / "final"))
    other = peft.PeftModel.from_pretrained(make("llama"), tmp_path / "final").eval()
    torch.testing.assert_close(logits(other, batch(other)), logits(model.eval(), batch(other)))


def test_save_model_says_why_there_is_no_adapter(tmp_path):
    model = attach_rows(make("phi"), TOKENS, output="tied")  # PEFT drops the bias of a head that follows
    trainer = TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset())
    with pytest.warns(RuntimeWarning, match=r"holds ticket_rows.safetensors and no adapter: .*bias"):
        trainer.save_model(str(tmp_path / "final"))
    assert [path.name for path in (tmp_path / "final").glob("*.safetensors")] == [ROWS_FILE]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The Hub, as folders: the client of huggingface_hub copies files there in place of sending them."""
    root = tmp_path / "hub"

    def create_repo(_self, repo_id: str, **_options: object) -> SimpleNamespace:
        (root / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(_self, *, repo_id, folder_path, path_in_repo="", ignore_patterns=(), run_as_future=False, **_):
        for path in Path(folder_path).rglob("*"):
            name = path.relative_to(folder_path).as_posix()
            if path.is_file() and not any(fnmatch(name, f"{pattern}*") for pattern in ignore_patterns):
                target = root / repo_id / path_in_repo / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done if run_as_future else SimpleNamespace(commit_url="")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return root


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_what_is_pushed_is_an_adapter_with_its_card(tmp_path, hub, strategy):
    model = make("llama")
    trainer = TicketTrainer(
        model=model,
        args=arguments(
            tmp_path / "run",
            max_steps=2,
            save_steps=1,
            push_to_hub=True,
            hub_strategy=strategy,
            hub_model_id="org/rows",
            eval_strategy="steps",
            eval_steps=1,
        ),
        train_dataset=dataset(),
        eval_dataset=dataset(6),
        tickets=TOKENS,
        output="tied",
    )
    trainer.train()
    repo, inputs = hub / "org/rows", batch(model)
    if strategy == "end":
        assert not list(repo.iterdir())
    else:  # what was saved last is there before the end
        assert torch.equal(logits(load_adapter(make("llama"), repo), inputs), logits(model, inputs))
    kept = {"checkpoint": "last-checkpoint", "all_checkpoints": "checkpoint-1"}.get(strategy)
    assert {path.name for path in repo.glob("*checkpoint*")} >= ({kept} if kept else set())
    trainer.push_to_hub(license="apache-2.0", tags="rows")
    assert torch.equal(logits(load_adapter(make("llama"), repo), inputs), logits(model, inputs))
    other = peft.PeftModel.from_pretrained(make("llama"), repo).eval()
    torch.testing.assert_close(logits(other, inputs), logits(model, inputs))
    card = huggingface_hub.ModelCard.load(repo / "README.md")
    assert card.data.to_dict().items() >= {"library_name": "peft", "license": "apache-2.0"}.items()
    assert {"rows", "kslottery-fast"} <= set(card.data.tags)
    assert 'load_adapter(base_model, "org/rows")' in card.text
    assert "| eval_loss | " in card.text
    assert not any(path.name.startswith("model") for path in repo.rglob("*"))


def test_a_push_that_cannot_be_an_adapter_is_refused_before_the_hub_is_asked(tmp_path, hub):
    model = make("phi")  # its head has a bias, which PEFT drops where the head follows
    with pytest.raises(InputError, match=r"push_to_hub uploads the rows as an adapter, and they cannot be one: .*bias"):
        TicketTrainer(
            model=model,
            args=arguments(tmp_path, push_to_hub=True, hub_model_id="org/rows"),
            train_dataset=dataset(),
            tickets=TOKENS,
            output="tied",
        )
    assert not hub.exists()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_rows_is_pushed_as_the_trainer_does_it(tmp_path, hub):
    trainer = TicketTrainer(
        model=make("llama"),
        args=arguments(tmp_path / "run", max_steps=1, push_to_hub=True, hub_strategy="end", hub_model_id="org/model"),
        train_dataset=dataset(),
        tickets="none",
    )
    trainer.save_model()
    assert load_file(hub / "org/model" / "model.safetensors")

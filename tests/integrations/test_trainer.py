"""TicketTrainer: what trains, the same losses as a plain Trainer, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import peft
import pytest
import torch
import trl
from safetensors.torch import load_file
from tiny_models import V, add_adapter, make
from tiny_trainer import TOKENS, arguments, dataset, train
from torch import nn
from transformers import Trainer

from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.trainer import TicketTrainer, TicketTrainerMixin
from kslottery_fast.integrations.trainer_checkpoint import ROWS_FILE
from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.adapter_file import load_adapter, save_adapter
from kslottery_fast.rows.attach import attach_rows, get_rows, has_rows, merge_rows
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.tickets.tickets import Tickets


def test_rows_alone_train_with_row_adamw_and_the_arguments_options(tmp_path):
    model = make("llama")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = train(model, tmp_path, weight_decay=0.05, adam_beta2=0.98, adam_epsilon=1e-6)
    optimizer = trainer.optimizer.optimizer  # inside accelerate's wrapper
    assert isinstance(optimizer, RowAdamW)
    (group,) = optimizer.param_groups
    assert group["params"] == [get_rows(model).rows]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.05, (0.9, 0.98), 1e-6)
    assert group["initial_lr"] == 1e-2
    assert (get_rows(model).rows - state["model.embed_tokens.weight"][TOKENS]).abs().max() > 1e-2
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if name in state)


def test_model_init_gets_rows_too(tmp_path):
    args = arguments(tmp_path)
    trainer = TicketTrainer(model_init=lambda: make("llama"), args=args, train_dataset=dataset(), tickets=TOKENS)
    trainer.train()
    assert get_rows(trainer.model).token_ids.tolist() == TOKENS


def test_rows_attached_before_are_used_and_tickets_may_repeat_them(tmp_path):
    model = attach_rows(make("llama"), TOKENS, output="tied")
    rows = get_rows(model).rows
    train(model, tmp_path, tickets=None)
    trainer = train(model, tmp_path, tickets=SimpleNamespace(token_ids=torch.tensor(TOKENS[::-1]), vocab_size=V))
    assert get_rows(trainer.model).rows is rows


def test_the_mixin_works_with_another_trainer(tmp_path):
    class OtherTrainer(Trainer):
        pass

    class Mixed(TicketTrainerMixin, OtherTrainer):
        pass

    trainer = Mixed(make("llama"), arguments(tmp_path), train_dataset=dataset(), tickets=TOKENS)
    trainer.train()
    assert trainer.state.global_step == 6


def test_bfloat16_models_train_float32_rows(tmp_path):
    model = make("llama").to(torch.bfloat16)
    start = embedding_table(model)[TOKENS].float().clone()
    train(model, tmp_path)
    rows = get_rows(model).rows
    assert rows.dtype == torch.float32
    assert (rows != start).any()


def test_without_tickets_and_without_rows_nothing_trains_unless_asked_for(tmp_path):
    options = {"args": arguments(tmp_path, max_steps=1, save_strategy="no"), "train_dataset": dataset()}
    model = make("llama")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for made in ({"model": model}, {"model_init": lambda: model}):
        with pytest.raises(
            InputError, match=r"^tickets is None, and .* no attached rows: pass tickets=.*'none' trains"
        ):
            TicketTrainer(**made, **options)
    trainer = TicketTrainer(model=model, tickets="none", **options)
    assert not has_rows(model)
    trainer.train()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    with pytest.raises(InputError, match="output is 'tied', and no row trains"):
        TicketTrainer(model=model, tickets="none", output="tied", **options)
    with pytest.raises(InputError, match="no trainable parameter; pass tickets="):
        TicketTrainer(model=model.requires_grad_(False), tickets="none", **options)


def test_tickets_may_be_the_path_of_a_ticket_file_or_strings_of_tokens(tmp_path, tiny_llama, tiny_tokenizer):
    ids = tiny_tokenizer(" the is")["input_ids"]
    settings = {"vocab_size": 320, "dimension": 32, "threshold_count": 1, "alpha": 0.05}
    path = tmp_path / "tickets.json"
    data = [{"input_ids": ids, "labels": ids}]
    options = {"args": arguments(tmp_path), "train_dataset": data}
    Tickets.from_counts(ids, range(9, 9 - len(ids), -1), **settings).save(path, tiny_tokenizer)
    for tickets in (path, str(path), np.array(ids), torch.tensor(ids), set(ids)):
        model = TicketTrainer(model=tiny_llama(), tickets=tickets, **options).model
        assert sorted(get_rows(model).token_ids.tolist()) == sorted(ids)
    texts = [tiny_tokenizer.decode([token]) for token in ids]
    model = TicketTrainer(model=tiny_llama(), tickets=texts, processing_class=tiny_tokenizer, **options).model
    assert get_rows(model).token_ids.tolist() == ids
    model = tiny_llama()
    with pytest.raises(InputError, match=r"tickets has the string .*: pass tokenizer="):
        TicketTrainer(model=model, tickets=texts, **options)
    with pytest.raises(
        InputError, match=r"^tickets is 'all': expected Tickets, token ids, 'active', 'added', 'none' or the path"
    ):
        TicketTrainer(model=model, tickets="all", **options)
    assert not has_rows(model)
    # Arguments by place are the Trainer's own, train_dataset among them.
    trainer = TicketTrainer(model, arguments(tmp_path), None, data, tickets="active")
    assert get_rows(trainer.model).token_ids.tolist() == sorted(ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tickets": [1, 2]}, "are not those of tickets"),
        ({"tickets": {1, 2}}, "are not those of tickets"),
        ({"output": "tied"}, "output is 'tied', and the rows are attached with output='frozen'; call detach_rows"),
    ],
)
def test_tickets_that_do_not_fit_the_attached_rows_are_refused(tmp_path, options, message):
    model = attach_rows(make("llama"), TOKENS)
    with pytest.raises(InputError, match=message):
        TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), **options)


def test_tickets_of_another_tokenizer_are_refused(tmp_path, tiny_llama, tiny_tokenizer):
    settings = {"vocab_size": 320, "dimension": 32, "threshold_count": 1, "alpha": 0.05}
    tickets = Tickets.from_counts([40, 41], [9, 8], **settings, token_texts=("one", "two"))
    data = [{"input_ids": [40, 41], "labels": [40, 41]}]
    options = {"args": arguments(tmp_path), "train_dataset": data, "processing_class": tiny_tokenizer}
    model = tiny_llama()
    with pytest.raises(InputError, match="of another tokenizer: token 40 is 'one' in the tickets and"):
        TicketTrainer(model=model, tickets=tickets, **options)
    assert not has_rows(model)
    tickets.save(tmp_path / "tickets.json", tiny_tokenizer)
    tickets = Tickets.load(tmp_path / "tickets.json")
    assert get_rows(TicketTrainer(model=model, tickets=tickets, **options).model).token_ids.tolist() == [40, 41]


def test_an_evaluation_during_training_uses_the_rows(tmp_path):
    model = make("llama")
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=6, save_strategy="no")
    trainer = TicketTrainer(
        model=model, args=args, train_dataset=dataset(), eval_dataset=dataset(6), tickets=TOKENS, output="tied"
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    logged = next(entry["eval_loss"] for entry in trainer.state.log_history[1:] if "eval_loss" in entry)
    merge_rows(model)
    merged = Trainer(model=model, args=args, eval_dataset=dataset(6)).evaluate()["eval_loss"]
    assert logged == pytest.approx(merged, rel=1e-5)
    assert logged != pytest.approx(before, rel=1e-3)


def test_sft_trainer_with_a_peft_config_trains_lora_and_rows(tmp_path, tiny_llama, tiny_tokenizer):
    class TicketSFTTrainer(TicketTrainerMixin, trl.SFTTrainer):
        pass

    def trained(model: nn.Module, folder: Path, resume: str | None = None) -> nn.Module:
        args = trl.SFTConfig(
            str(folder), max_steps=4, save_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True, bf16=False
        )
        trainer = TicketSFTTrainer(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_dict({"text": ["The house is big", "Save the file"] * 8}),
            processing_class=tiny_tokenizer,
            peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
            tickets=tiny_tokenizer(" the is")["input_ids"],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    straight = trained(tiny_llama(tied=True), tmp_path / "a")
    moved = {name for name, parameter in straight.named_parameters() if parameter.requires_grad}
    assert len(moved) == 5  # two layers with two LoRA matrices each, and the rows
    rows = get_rows(straight)
    assert (rows.rows - rows.weight[rows.token_ids]).abs().max() > 1e-3
    assert all((p != 0).any() for name, p in straight.named_parameters() if "lora_B" in name)
    resumed = trained(tiny_llama(tied=True), tmp_path / "b", str(tmp_path / "a" / "checkpoint-2"))
    for (name, ours), theirs in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("wrapped", [True, False], ids=["get_peft_model", "add_adapter"])
def test_adapters_that_the_model_has_train_beside_the_rows(tmp_path, wrapped):
    def model() -> nn.Module:
        torch.manual_seed(0)  # LoRA starts at random
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        base = make("llama")
        if wrapped:
            return peft.get_peft_model(base, config)
        return add_adapter(base, config)

    straight, resumed = model(), model()
    start = {name: parameter.detach().clone() for name, parameter in straight.named_parameters()}
    trainer = train(straight, tmp_path / "a", weight_decay=0.1)
    rows = get_rows(straight).rows
    lora = [parameter for name, parameter in straight.named_parameters() if "lora_" in name]
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, RowAdamW)
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert len(lora) == 4
    assert optimized == {id(rows), *map(id, lora)}
    assert (rows - start[next(n for n in start if "embed_tokens.weight" in n)][TOKENS]).abs().max() > 1e-3
    for name, parameter in straight.named_parameters():
        if parameter is not rows:
            assert torch.equal(parameter, start[name]) == ("lora_" not in name), name
    saved = load_file(tmp_path / "a" / "checkpoint-6" / ROWS_FILE)
    assert torch.equal(saved["rows"], rows)
    assert sum("lora_" in name for name in saved) == 4
    train(resumed, tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3", weight_decay=0.1)
    for (name, ours), theirs in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_peft_model_with_rows_still_saves_its_own_adapter(tmp_path):
    model = peft.get_peft_model(make("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    train(model, tmp_path, max_steps=1, save_strategy="no")
    model.save_pretrained(tmp_path / "lora")
    assert all("lora_" in name for name in load_file(tmp_path / "lora" / "adapter_model.safetensors"))
    save_adapter(model.get_base_model(), tmp_path / "rows")
    other = load_adapter(make("llama"), tmp_path / "rows")
    assert torch.equal(get_rows(other).rows, get_rows(model).rows)
    merge_rows(model)
    assert [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name
    ] == []


def test_a_model_id_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"load it first, with AutoModelForCausalLM\.from_pretrained\('org/name'\)"):
        TicketTrainer(model="org/name", args=arguments(tmp_path), train_dataset=dataset(), tickets=TOKENS)


def test_several_gpus_in_one_process_are_refused_and_the_model_stays_as_it_was(tmp_path, monkeypatch):
    args = arguments(tmp_path)
    monkeypatch.setattr(args, "_n_gpu", 2)  # what a machine with two GPUs gives without a launcher
    model = make("llama")
    with pytest.raises(InputError, match=r"args\.n_gpu is 2: .*nn\.DataParallel.*`accelerate launch` or `torchrun`"):
        TicketTrainer(model=model, args=args, train_dataset=dataset(), tickets=TOKENS)
    assert not has_rows(model)
    with pytest.raises(InputError, match="accelerate launch"):
        TicketTrainer(model=model, args=args, train_dataset=dataset(), tickets="none", supervised_logits_only=True)
    TicketTrainer(
        model=model, args=args, train_dataset=dataset(), tickets="none"
    )  # neither rows nor our loss: a plain Trainer


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model", [None, 3, 0.5, ["a"], [], "tokenizer"]),
        ("args", ["a", 3, ["a"], [], "model"]),
        ("train_dataset", ["a", 3, 0.5, ["a", "b"], "model", "tokenizer"]),
        ("processing_class", ["a", 3, ["a"], []]),
        ("tickets", [None, "a", 3, 0.5, ["a"], [], "model", "tokenizer"]),
        ("output", [None, "a", 3, [], "model"]),
        ("nonfinite", [None, "a", 3, []]),
        ("lazy", [None, "a", 3, []]),
        ("supervised_logits_only", [None, "a", 3, []]),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name_before_the_model_is_changed(tmp_path, tiny_tokenizer, name, values):
    model, objects = make("llama"), {"model": make("llama"), "tokenizer": tiny_tokenizer}
    options = {"model": model, "args": arguments(tmp_path), "train_dataset": dataset(), "tickets": TOKENS}
    for value in values:
        wrong = objects.get(value, value) if isinstance(value, str) else value
        with pytest.raises((InputError, TypeError), match=rf"^{name}\b"):
            TicketTrainer(**options | {name: wrong})
    assert not has_rows(model)
    assert all(parameter.requires_grad for parameter in model.parameters())

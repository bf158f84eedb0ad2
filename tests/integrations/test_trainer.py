"""TicketTrainer: same losses as a plain Trainer, small checkpoints, bit-equal resume."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import datasets
import peft
import pytest
import torch
import trl
from safetensors.torch import load_file, save_file
from tiny_models import V, make
from torch import nn
from transformers import Trainer, TrainingArguments

from kslottery_fast.errors import InputError
from kslottery_fast.files import write_safetensors
from kslottery_fast.integrations.trainer import ROWS_FILE, TicketTrainer, TicketTrainerMixin, load_checkpoint
from kslottery_fast.optim import RowAdamW
from kslottery_fast.rows import active_token_ids, attach_rows, embedding_table, get_rows, is_tied, merge_rows
from kslottery_fast.tickets import Tickets

TOKENS = [7, 5, 9, 40, 12, 13]


def dataset(n: int = 24, *, length: int = 9, low: int = 8, high: int = 40) -> list[dict[str, list[int]]]:
    """Sequences of unequal target lengths, so that the normalisation of accumulated batches shows."""
    generator = torch.Generator().manual_seed(3)
    data = []
    for index in range(n):
        ids = torch.randint(low, high, (length,), generator=generator).tolist()
        prompt = 3 + index % 4
        labels = [-100] * prompt + ids[prompt:]
        data.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * length})
    return data


def arguments(folder: Path, **options: object) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": [],
        "seed": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**(defaults | options))


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train(model: nn.Module, folder: Path, *, resume: Path | None = None, **options: object) -> TicketTrainer:
    ours = {key: options.pop(key) for key in ("tickets", "output", "supervised_logits_only") if key in options}
    trainer = TicketTrainer(
        model=model, args=arguments(folder, **options), train_dataset=dataset(), **({"tickets": TOKENS} | ours)
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


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


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, accumulation):
    options = {"gradient_accumulation_steps": accumulation, "weight_decay": 0.1, "max_grad_norm": 0.5}
    straight, resumed = make("llama"), make("llama")
    whole = train(straight, tmp_path / "a", **options)
    rest = train(resumed, tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3", **options)
    assert torch.equal(get_rows(straight).rows, get_rows(resumed).rows)
    assert losses(rest) == losses(whole)


def test_checkpoints_hold_rows_and_not_the_model(tmp_path):
    model = make("llama")
    trainer = train(model, tmp_path)
    checkpoint = tmp_path / "checkpoint-6"
    names = {path.name for path in checkpoint.iterdir()}
    assert {ROWS_FILE, "optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.json"} <= names
    assert not any("model" in name for name in names)
    saved = load_file(checkpoint / ROWS_FILE)
    assert torch.equal(saved["rows"], get_rows(model).rows)
    assert saved["token_ids"].tolist() == TOKENS
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 60_000
    trainer.save_model(str(tmp_path / "final"))
    assert torch.equal(load_file(tmp_path / "final" / ROWS_FILE)["rows"], get_rows(model).rows)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    model = make("llama")
    scores = iter([3.0, 2.0, 1.0])
    trainer = TicketTrainer(
        model=model,
        args=arguments(
            tmp_path,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="score",
        ),
        train_dataset=dataset(),
        eval_dataset=dataset(6),
        tickets=TOKENS,
        compute_metrics=lambda _: {"score": next(scores)},
    )
    trainer.train()
    first, last = (load_file(tmp_path / f"checkpoint-{step}" / ROWS_FILE)["rows"] for step in (2, 6))
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
    assert torch.equal(get_rows(model).rows, first)
    assert not torch.equal(first, last)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_supervised_logits_give_the_plain_loss_and_gradient(tmp_path, name):
    results = []
    for supervised in (False, True):
        model = make(name)
        trainer = TicketTrainer(
            model=model,
            args=arguments(tmp_path),
            train_dataset=dataset(),
            tickets=TOKENS,
            supervised_logits_only=supervised,
        )
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        items = (batch["labels"] != -100).sum()
        model.eval()
        loss = trainer.compute_loss(model, batch, num_items_in_batch=items)
        loss.backward()
        mean = trainer.compute_loss(model, batch)
        results.append((loss.detach(), mean.detach(), get_rows(model).rows.grad))
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_supervised_logits_train_as_the_plain_loss_does(tmp_path, accumulation):
    runs = []
    for supervised in (False, True):
        model = make("llama")
        options = {"gradient_accumulation_steps": accumulation, "supervised_logits_only": supervised}
        runs.append((losses(train(model, tmp_path / str(supervised), **options)), get_rows(model).rows.detach()))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-5)
    torch.testing.assert_close(runs[1][1], runs[0][1], rtol=1e-4, atol=1e-4)


def test_embed_tuning_on_the_active_vocabulary_equals_torch_adamw_on_the_full_table(tmp_path):
    ours, dense = make("llama", tied=False), make("llama", tied=False)
    start = embedding_table(dense).detach().clone()
    trainer = train(ours, tmp_path / "rows", tickets="active", max_steps=20, max_grad_norm=0.0)
    active = active_token_ids(dataset())
    assert get_rows(ours).token_ids.tolist() == active.tolist()
    dense.requires_grad_(False)
    embedding_table(dense).requires_grad_(True)
    args = arguments(tmp_path / "dense", max_steps=20, max_grad_norm=0.0, optim="adamw_torch", save_strategy="no")
    plain = Trainer(model=dense, args=args, train_dataset=dataset())
    plain.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-6)
    merged, full = embedding_table(merge_rows(ours)), embedding_table(dense)
    inactive = torch.ones(V, dtype=torch.bool)
    inactive[active] = False
    assert inactive.any()
    assert torch.equal(merged[inactive], start[inactive])
    assert torch.equal(full[inactive], start[inactive])
    # Gradients agree to rounding. Adam divides them by their own size, so a coordinate whose gradient is
    # itself rounding noise can move differently by a small part of a step; steps are 1e-2, moves up to 0.1.
    torch.testing.assert_close(merged, full, rtol=0, atol=1e-4)
    assert (full - start).abs().max() > 0.05


def test_a_batch_with_a_token_outside_the_active_vocabulary_is_refused(tmp_path):
    model = make("llama")
    trainer = TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), tickets="active")
    trainer.train_dataset = dataset(low=50, high=55)
    with pytest.raises(InputError, match=r"input_ids holds token 5\d, which is not in the active vocabulary"):
        trainer.train()


def test_padding_is_no_token_outside_the_active_vocabulary(tmp_path):
    model = make("llama")
    trainer = TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), tickets="active")
    batch = {"input_ids": torch.tensor([[8, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    trainer._check_batch(model, batch)
    batch["attention_mask"][0, 2] = 1
    with pytest.raises(InputError, match="holds token 0"):
        trainer._check_batch(model, batch)


@pytest.mark.parametrize("name", ["t5", "m2m100"])
def test_an_encoder_decoder_model_trains_on_its_active_vocabulary(tmp_path, name):
    model = make(name)
    trainer = train(model, tmp_path, tickets="active", max_steps=3)
    start = model.config.decoder_start_token_id
    assert start in get_rows(model).token_ids
    assert all(math.isfinite(loss) for loss in losses(trainer))


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


def test_other_trainable_parameters_train_and_resume_beside_the_rows(tmp_path):
    def model() -> nn.Module:
        model = attach_rows(make("llama"), TOKENS)
        model.model.norm.weight.requires_grad_(True)
        model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
        return model

    straight, resumed = model(), model()
    trainer = train(straight, tmp_path / "a", tickets=None, weight_decay=0.1)
    decays = {len(group["params"]): group["weight_decay"] for group in trainer.optimizer.param_groups}
    assert decays == {2: 0.1, 1: 0.0}  # the norm does not decay, as in Trainer
    train(resumed, tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3", tickets=None, weight_decay=0.1)
    for (name, ours), theirs in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


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


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    model = make("llama").requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter; pass tickets="):
        TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tickets": [1, 2]}, "are not those of tickets"),
        ({"output": "tied"}, "attached with output='frozen', not 'tied'"),
        ({"tickets": "all"}, "Tickets, token ids or 'active', not 'all'"),
    ],
)
def test_tickets_that_do_not_fit_the_attached_rows_are_refused(tmp_path, options, message):
    model = attach_rows(make("llama"), TOKENS)
    with pytest.raises(InputError, match=message):
        TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), **options)


def test_tickets_of_another_tokenizer_are_refused(tmp_path, tiny_llama, tiny_tokenizer):
    settings = {"vocab_size": 320, "dimension": 32, "threshold_count": 1, "alpha": 0.05}
    tickets = Tickets.from_counts([40, 41], [9, 8], **settings, token_texts=("one", "two"))
    options = {"args": arguments(tmp_path), "train_dataset": dataset(), "processing_class": tiny_tokenizer}
    model = tiny_llama()
    with pytest.raises(InputError, match="of another tokenizer: token 40 is 'one' in the tickets and"):
        TicketTrainer(model=model, tickets=tickets, **options)
    assert get_rows(model) is None
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
        base.add_adapter(config)
        return base

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
    merge_rows(model)
    assert [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name
    ] == []


def test_several_gpus_in_one_process_are_refused_and_the_model_stays_as_it_was(tmp_path, monkeypatch):
    args = arguments(tmp_path)
    monkeypatch.setattr(args, "_n_gpu", 2)  # what a machine with two GPUs gives without a launcher
    model = make("llama")
    with pytest.raises(InputError, match=r"args\.n_gpu is 2: .*nn\.DataParallel.*`accelerate launch` or `torchrun`"):
        TicketTrainer(model=model, args=args, train_dataset=dataset(), tickets=TOKENS)
    assert get_rows(model) is None
    with pytest.raises(InputError, match="accelerate launch"):
        TicketTrainer(model=model, args=args, train_dataset=dataset(), supervised_logits_only=True)
    TicketTrainer(model=model, args=args, train_dataset=dataset())  # neither rows nor our loss: a plain Trainer


def test_active_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="tickets='active' needs train_dataset"):
        TicketTrainer(model=make("llama"), args=arguments(tmp_path), tickets="active")


def test_supervised_logits_with_label_smoothing_are_refused_and_the_model_stays_as_it_was(tmp_path):
    model = make("llama")
    with pytest.raises(InputError, match="drop label smoothing"):
        TicketTrainer(
            model=model,
            args=arguments(tmp_path, label_smoothing_factor=0.1),
            tickets=TOKENS,
            supervised_logits_only=True,
        )
    assert get_rows(model) is None
    assert is_tied(model)


def test_checkpoints_that_do_not_fit_are_refused_and_nothing_is_loaded(tmp_path):
    model = make("llama")
    train(model, tmp_path, max_steps=3)
    checkpoint = tmp_path / "checkpoint-3"
    saved = load_file(checkpoint / ROWS_FILE)
    metadata = {"vocab_size": str(V), "output": "frozen"}

    def refused(target: nn.Module, message: str, **changes: object) -> None:
        before = copy.deepcopy(target.state_dict())
        folder = tmp_path / "changed"
        write_safetensors(
            folder / ROWS_FILE, saved | changes.get("tensors", {}), metadata | changes.get("metadata", {})
        )
        with pytest.raises(InputError, match=message):
            load_checkpoint(target, folder)
        assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())

    fresh = attach_rows(make("llama"), TOKENS)
    refused(attach_rows(make("llama"), TOKENS[::-1]), "rows of other tokens")
    refused(attach_rows(make("llama"), TOKENS, output="tied"), "output frozen, the model has tied")
    refused(fresh, "vocab_size 61, the model has 60", metadata={"vocab_size": "61"})
    refused(fresh, "does not hold the tensors", tensors={"rows": torch.ones(6, 3)})
    refused(fresh, "does not hold the tensors", tensors={"other.x": torch.ones(1)})
    refused(fresh, "6 of 6 rows hold NaN or Inf", tensors={"rows": torch.full((6, 16), float("nan"))})
    with pytest.raises(InputError, match=f"has no {ROWS_FILE}"):
        load_checkpoint(fresh, tmp_path)
    (tmp_path / "changed" / ROWS_FILE).write_bytes(b"\x00" * 40)
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(fresh, tmp_path / "changed")
    save_file(saved, tmp_path / "changed" / ROWS_FILE)  # a foreign file, without metadata
    with pytest.raises(InputError, match="saved with vocab_size None"):
        load_checkpoint(fresh, tmp_path / "changed")
    load_checkpoint(fresh, checkpoint)
    assert torch.equal(get_rows(fresh).rows, saved["rows"])

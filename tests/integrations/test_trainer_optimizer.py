"""The optimizer of a TicketTrainer: RowAdamW or what the caller passes, never NaN."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import make
from tiny_trainer import TOKENS, arguments, dataset, losses
from torch import nn
from transformers import TrainerCallback

from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations import trainer_checks
from kslottery_fast.integrations.trainer import TicketTrainer
from kslottery_fast.integrations.trainer_checkpoint import ROWS_FILE
from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.attach import attach_rows, get_rows, has_rows


class Rows(TrainerCallback):
    """The rows after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.after = model, []

    def on_step_end(self, *args, **kwargs) -> None:
        self.after.append(get_rows(self.model).rows.detach().clone())


class SpoiltTrainer(TicketTrainer):
    """The loss of the fourth step is NaN, or what ``factor`` makes of it."""

    steps, factor = 0, float("nan")

    def compute_loss(self, *args, **options):
        self.steps += 1
        return super().compute_loss(*args, **options) * (self.factor if self.steps == 4 else 1.0)


def nan_run(folder: Path, *, fp16: bool = False, **options: object) -> tuple[SpoiltTrainer, list[torch.Tensor]]:
    model = make("llama")
    rows = Rows(model)
    args = arguments(folder, save_steps=1, fp16=fp16)
    trainer = SpoiltTrainer(
        model=model, args=args, train_dataset=dataset(), tickets=TOKENS, callbacks=[rows], **options
    )
    return trainer, rows.after


def assert_finite_checkpoints(folder: Path, count: int) -> None:
    checkpoints = list(folder.glob("checkpoint-*"))
    assert len(checkpoints) == count
    for checkpoint in checkpoints:
        states = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].values()
        tensors = [load_file(checkpoint / ROWS_FILE)["rows"], *(value for state in states for value in state.values())]
        assert len(tensors) == 4  # rows, step and two moments
        assert all(torch.isfinite(tensor).all() for tensor in tensors)


def test_a_nan_gradient_raises_before_anything_is_written(tmp_path):
    trainer, after = nan_run(tmp_path)
    with pytest.raises(InputError, match="nonfinite='skip'"):
        trainer.train()
    assert torch.equal(get_rows(trainer.model).rows, after[-1])
    assert len(after) == 3
    assert_finite_checkpoints(tmp_path, 3)


def test_a_nan_gradient_can_be_skipped_and_is_logged(tmp_path):
    trainer, after = nan_run(tmp_path, nonfinite="skip")
    trainer.train()
    assert torch.equal(after[3], after[2])
    assert not torch.equal(after[4], after[3])
    assert all(torch.isfinite(rows).all() for rows in after)
    skipped = [entry["skipped_steps"] for entry in trainer.state.log_history if "loss" in entry]
    assert skipped == [0, 0, 0, 1, 1, 1]
    assert_finite_checkpoints(tmp_path, 6)


@pytest.mark.parametrize("factor", [1.0, float("inf")], ids=["as it is", "with an overflow"])
def test_float16_with_a_grad_scaler_trains_as_float32_and_leaves_out_steps_that_overflow(tmp_path, factor):
    trainer, after = nan_run(tmp_path / "float16", fp16=True)
    trainer.factor = factor
    # On the CPU accelerate takes fp16=True for float32; with these two set it does what it does on a GPU.
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    trainer.accelerator.native_amp = True
    trainer.train()
    plain, want = nan_run(tmp_path / "float32", nonfinite="skip")
    plain.factor = factor
    plain.train()
    assert trainer.optimizer.scaler is scaler
    assert scaler.get_scale() == (2.0**14 if factor == 1.0 else 2.0**13)
    assert torch.equal(after[3], after[2]) == (factor != 1.0)
    torch.testing.assert_close(after[2], want[2], rtol=0, atol=1e-3)  # three steps of up to 1e-2
    assert losses(trainer) != losses(plain)  # so float16 it was
    assert losses(trainer)[:3] == pytest.approx(losses(plain)[:3], rel=1e-3)
    assert_finite_checkpoints(tmp_path / "float16", 6)


def test_another_nonfinite_is_refused(tmp_path):
    with pytest.raises(InputError, match="nonfinite is 'ignore': expected 'raise' or 'skip'"):
        nan_run(tmp_path, nonfinite="ignore")


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "adamw_torch_4bit"])
def test_arguments_that_ask_for_another_optimizer_are_refused(tmp_path, optim):
    model = make("llama")
    with pytest.raises(InputError, match=rf"args\.optim is '{optim}', and a TicketTrainer trains with RowAdamW"):
        TicketTrainer(model=model, args=arguments(tmp_path, optim=optim), train_dataset=dataset(), tickets=TOKENS)
    assert not has_rows(model)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_arguments_that_ask_for_torchs_adamw_get_row_adamw(tmp_path, optim):
    args = arguments(tmp_path, optim=optim)
    trainer = TicketTrainer(model=make("llama"), args=args, train_dataset=dataset(), tickets=TOKENS)
    assert type(trainer.create_optimizer()) is RowAdamW


def test_an_optimizer_that_the_caller_passes_is_used_whatever_the_arguments_say(tmp_path):
    model = attach_rows(make("llama"), TOKENS)
    optimizer = torch.optim.SGD([get_rows(model).rows], lr=1.0)
    options = {"model": model, "train_dataset": dataset(), "optimizers": (optimizer, None)}
    trainer = TicketTrainer(args=arguments(tmp_path, optim="adafactor", max_steps=1), **options)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    for name, value in (("nonfinite", "skip"), ("lazy", True)):
        with pytest.raises(InputError, match=f"{name} is for the Trainer's own RowAdamW"):
            TicketTrainer(args=arguments(tmp_path), **{name: value}, **options)


def test_a_lazy_trainer_leaves_rows_at_rest_that_a_batch_does_not_read(tmp_path):
    data = [{"input_ids": [1, token, 2], "labels": [1, token, 2]} for token in (5, 6, 6)]
    args = arguments(tmp_path, max_steps=3, per_device_train_batch_size=1, data_seed=0)
    moved = {}
    for lazy in (False, True):
        model = attach_rows(make("llama"), [5, 6])
        trained, steps = get_rows(model).rows, []

        class Watch(transformers.TrainerCallback):
            def on_optimizer_step(self, *_, steps=steps, rows=trained, **__):
                steps.append((rows.detach().clone(), rows.grad.any(dim=1).tolist()))

        trainer = TicketTrainer(model=model, args=args, train_dataset=data, callbacks=[Watch()], lazy=lazy)
        assert trainer.create_optimizer().param_groups[0]["lazy"] is lazy
        trainer.train()
        pairs = itertools.pairwise(steps)
        moved[lazy] = [(old[0] != new[0]).any(dim=1).tolist() == new[1] for old, new in pairs]
    assert all(moved[True])
    assert not all(moved[False])


@pytest.mark.parametrize("how", ["FSDP", "DeepSpeed ZeRO-3"])
def test_a_trainer_that_shards_parameters_is_refused_before_it_trains(tmp_path, monkeypatch, how):
    plain = transformers.Trainer.__init__

    def as_if_launched_so(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.is_fsdp_enabled, self.is_deepspeed_enabled = how == "FSDP", how != "FSDP"

    monkeypatch.setattr(transformers.Trainer, "__init__", as_if_launched_so)
    monkeypatch.setattr(trainer_checks, "is_deepspeed_zero3_enabled", lambda: True)
    model = make("llama")
    with pytest.raises(InputError, match=f"shard the parameters .{how}.*docs/distributed.md"):
        TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=[], tickets=TOKENS)
    assert not has_rows(model)

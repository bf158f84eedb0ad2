"""Checkpoints of a TicketTrainer: small, resumed bit for bit, refused where they do not fit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import V, make
from tiny_trainer import TOKENS, arguments, dataset, losses, train
from torch import nn

from kslottery_fast import add_rows, mixed_rows, use_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_safetensors
from kslottery_fast.integrations.trainer import TicketTrainer
from kslottery_fast.integrations.trainer_adapter import attach_checkpoint
from kslottery_fast.integrations.trainer_checkpoint import ROWS_FILE, load_checkpoint
from kslottery_fast.rows.attach import attach_rows, get_rows
from kslottery_fast.rows.attachment import get_output_rows
from kslottery_fast.rows.tables import embedding_table


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, accumulation):
    options = {"gradient_accumulation_steps": accumulation, "weight_decay": 0.1, "max_grad_norm": 0.5}
    straight, resumed = make("llama"), make("llama")
    whole = train(straight, tmp_path / "a", **options)
    rest = train(resumed, tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3", **options)
    assert torch.equal(get_rows(straight).rows, get_rows(resumed).rows)
    assert losses(rest) == losses(whole)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_head_train_with_the_input_resume_bit_equal_and_load_best(tmp_path, tied):
    options = {"output": "own", "output_ids": [40, 30], "weight_decay": 0.1, "max_grad_norm": 0.5}
    straight, resumed, best = (make("llama", tied=tied) for _ in range(3))
    table = straight.get_output_embeddings().weight[[40, 30]].detach().clone()
    whole = train(straight, tmp_path / "a", **options)
    assert len(whole.optimizer.param_groups[0]["params"]) == 2
    assert (get_output_rows(straight).rows - table).abs().min() > 1e-3
    rest = train(resumed, tmp_path / "b", resume=tmp_path / "a" / "checkpoint-3", **options)
    assert losses(rest) == losses(whole)
    for name, ours in straight.state_dict().items():
        assert torch.equal(ours, resumed.state_dict()[name]), name
    scores = iter([2.0, 1.0])
    options |= {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    train(
        best,
        tmp_path / "c",
        metric_for_best_model="score",
        compute_metrics=lambda _: {"score": next(scores)},
        **options,
    )
    first = load_file(tmp_path / "c" / "checkpoint-3" / ROWS_FILE)
    head = get_output_rows(best)
    assert torch.equal(head.rows, next(value for name, value in first.items() if name.endswith("output.rows")))
    assert not torch.equal(head.rows, get_output_rows(straight).rows)
    assert first["ids.default.output"].tolist() == [40, 30]
    for other, message in (
        (attach_rows(make("llama", tied=tied), TOKENS, output="own", output_ids=[30, 40]), "rows of other tokens"),
        (attach_rows(make("llama", tied=tied), TOKENS), "with output own, but the model has frozen"),
    ):
        with pytest.raises(InputError, match=message):
            load_checkpoint(other, tmp_path / "a" / "checkpoint-3")
    fresh = attach_checkpoint(make("llama", tied=tied), tmp_path / "a" / "checkpoint-6")
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in straight.state_dict().items())


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


class MixedTrainer(TicketTrainer):
    """Each batch of three examples reads three sets."""

    def compute_loss(self, model, inputs, **options):
        with mixed_rows(model, ["default", "fr", None]):
            return super().compute_loss(model, inputs, **options)


def two_sets(ids: list[int], *, in_use: str | None) -> nn.Module:
    return use_rows(add_rows(attach_rows(make("llama"), TOKENS), "fr", ids), in_use)


@pytest.mark.parametrize("in_use", ["default", None])
def test_mixed_batches_resume_bit_equal_with_a_set_in_use_and_without_one(tmp_path, in_use):
    def run(folder: str, resume: str | None = None) -> nn.Module:
        model = two_sets([12, 20], in_use=in_use)
        trainer = MixedTrainer(model=model, args=arguments(tmp_path / folder), train_dataset=dataset())
        trainer.train(resume_from_checkpoint=resume)
        return get_rows(model).row_sets

    straight, resumed = run("a"), run("b", str(tmp_path / "a" / "checkpoint-3"))
    start = get_rows(two_sets([12, 20], in_use=None)).row_sets
    for name in ("default", "fr"):
        assert torch.equal(straight[name].rows, resumed[name].rows)
        assert (straight[name].rows != start[name].rows).any(dim=1).sum() >= 2


@pytest.mark.parametrize("in_use", ["default", None])
def test_a_set_of_other_tokens_is_refused_though_it_is_not_the_one_in_use(tmp_path, in_use):
    model = two_sets([20, 21], in_use=in_use)
    MixedTrainer(model=model, args=arguments(tmp_path, max_steps=3), train_dataset=dataset()).train()
    for ids in ([30, 31], [21, 20]):
        other = two_sets(ids, in_use=in_use)
        with pytest.raises(InputError, match=r"in the set 'fr': 20, 21 there, .* here; attach the tokens of the check"):
            load_checkpoint(other, tmp_path / "checkpoint-3")
        assert torch.equal(get_rows(other).row_sets["fr"].rows, embedding_table(other)[ids])
    switched = two_sets([20, 21], in_use="fr")
    with pytest.raises(InputError, match="use the same one" if in_use is None else "rows of other tokens"):
        load_checkpoint(switched, tmp_path / "checkpoint-3")


def test_nan_in_a_parameter_beside_the_rows_is_refused_and_nothing_is_loaded(tmp_path):
    model = attach_rows(make("llama"), TOKENS)
    model.model.norm.weight.requires_grad_(True)
    train(model, tmp_path, tickets=None, max_steps=3)
    saved = load_file(tmp_path / "checkpoint-3" / ROWS_FILE)
    saved["other.model.norm.weight"][1] = float("nan")
    write_safetensors(tmp_path / "bad" / ROWS_FILE, saved, {"vocab_size": str(V), "output": "frozen"})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"other\.model\.norm\.weight holds NaN or Inf; resume from an earlier"):
        load_checkpoint(model, tmp_path / "bad")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


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
    refused(attach_rows(make("llama"), TOKENS[::-1]), "rows of other tokens.*: 7, 5, 9, 40, 12, ... there, 13, 12,")
    refused(attach_rows(make("llama"), TOKENS, output="tied"), "output frozen, but the model has tied")
    refused(fresh, "vocab_size 61, but the model has 60", metadata={"vocab_size": "61"})
    refused(fresh, r"does not hold the tensors .*rows is \[6, 3\] there", tensors={"rows": torch.ones(6, 3)})
    refused(fresh, r"does not hold the tensors .*not in the model: other\.x", tensors={"other.x": torch.ones(1)})
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

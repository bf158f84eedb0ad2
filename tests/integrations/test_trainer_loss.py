"""supervised_logits_only: the loss and gradient of the Trainer, and no loss that is more than cross entropy."""

from __future__ import annotations

import datasets
import pytest
import torch
import trl
from tiny_models import V, make
from tiny_trainer import TOKENS, arguments, dataset, losses, train
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.trainer import TicketTrainer, TicketTrainerMixin
from kslottery_fast.rows.attach import get_rows, has_rows
from kslottery_fast.rows.tables import is_tied


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


def test_supervised_logits_with_label_smoothing_are_refused_and_the_model_stays_as_it_was(tmp_path):
    model = make("llama")
    with pytest.raises(InputError, match="drop label smoothing"):
        TicketTrainer(
            model=model,
            args=arguments(tmp_path, label_smoothing_factor=0.1),
            tickets=TOKENS,
            supervised_logits_only=True,
        )
    assert not has_rows(model)
    assert is_tied(model)


def mixtral(*, router_loss: bool) -> nn.Module:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        output_router_logits=router_loss,
        router_aux_loss_coef=1.0,
        pad_token_id=0,
    )
    return MixtralForCausalLM(config)


def test_supervised_logits_with_a_router_loss_are_refused_and_without_one_give_the_plain_loss(tmp_path):
    options = {"args": arguments(tmp_path), "train_dataset": dataset(), "tickets": TOKENS}
    model = mixtral(router_loss=True)
    with pytest.raises(
        InputError, match=r"leaves out the router loss that config\.output_router_logits adds; set it to"
    ):
        TicketTrainer(model=model, supervised_logits_only=True, **options)
    assert not has_rows(model)
    plain = {}
    for router_loss in (True, False):
        trainer = TicketTrainer(model=mixtral(router_loss=router_loss).eval(), **options)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        plain[router_loss] = trainer.compute_loss(trainer.model, batch).item()
    assert plain[True] > plain[False] + 1  # so that it would not be the same loss
    ours = TicketTrainer(model=mixtral(router_loss=False).eval(), supervised_logits_only=True, **options)
    assert ours.compute_loss(ours.model, batch).item() == pytest.approx(plain[False], rel=1e-5)


def test_supervised_logits_in_an_sft_trainer_give_its_loss_and_refuse_its_other_losses(
    tmp_path, tiny_llama, tiny_tokenizer
):
    class TicketSFTTrainer(TicketTrainerMixin, trl.SFTTrainer):
        pass

    def trainer(*, supervised: bool, **options: object) -> TicketSFTTrainer:
        settings = {"max_steps": 3, "logging_steps": 1, "report_to": [], "save_strategy": "no", "learning_rate": 1e-2}
        return TicketSFTTrainer(
            model=tiny_llama(),
            args=trl.SFTConfig(str(tmp_path), use_cpu=True, bf16=False, **(settings | options)),
            train_dataset=datasets.Dataset.from_dict({"text": ["The house is big", "Save the file"] * 8}),
            processing_class=tiny_tokenizer,
            tickets=[40, 41, 42],
            supervised_logits_only=supervised,
        )

    plain, ours = trainer(supervised=False), trainer(supervised=True)
    plain.train()
    ours.train()
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-4)
    assert "mean_token_accuracy" in plain.state.log_history[0]
    assert "mean_token_accuracy" not in ours.state.log_history[0]  # as the docstring says
    with pytest.raises(InputError, match=r"drop label smoothing, compute_loss_func or loss_type"):
        trainer(supervised=True, loss_type="dft")

"""Trainers of TRL, which read the head's weight and not the head, and which switch adapters off for a reference."""

from __future__ import annotations

import warnings

import datasets
import peft
import pytest
import torch
import trl
from torch import nn
from torch.nn import functional as F

from kslottery_fast import attach_rows, get_rows, mixed_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.trainer import TicketTrainerMixin

TEXTS = datasets.Dataset.from_dict({"text": ["The house is big", "Save the file", "Delete all of the house"] * 4})
PAIRS = datasets.Dataset.from_dict(
    {
        "prompt": ["The house is", "Save the"] * 4,
        "chosen": [" the big house", " file the house"] * 4,
        "rejected": [" is the file", " is"] * 4,
    }
)
LORA = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


class TicketSFTTrainer(TicketTrainerMixin, trl.SFTTrainer):
    """Supervised fine-tuning of rows."""


class TicketDPOTrainer(TicketTrainerMixin, trl.DPOTrainer):
    """Direct preference optimization of rows."""


def config(kind: type, folder, **options: object):
    defaults = {"max_steps": 2, "save_strategy": "no", "report_to": [], "use_cpu": True, "bf16": False}
    return kind(str(folder), **(defaults | {"learning_rate": 1e-2, "logging_steps": 1} | options))


@pytest.mark.parametrize(("tied", "output"), [(True, "tied"), (True, "own"), (False, "own")])
def test_an_sft_trainer_reads_the_rows_of_the_head(tmp_path, tiny_llama, tiny_tokenizer, tied, output):
    ids = tiny_tokenizer(" the is")["input_ids"]
    model = tiny_llama(tied=tied)
    if not tied:
        model.lm_head.bias = nn.Parameter(torch.randn(320))
    attach_rows(model, ids, output=output)
    options = {"args": config(trl.SFTConfig, tmp_path), "train_dataset": TEXTS, "processing_class": tiny_tokenizer}
    with pytest.warns(RuntimeWarning, match=r"TRL computes the loss from the weight .* supervised_logits_only=True"):
        trainer = TicketSFTTrainer(model=model, **options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == (3 if not tied else 2 if output == "own" else 1)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter))
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found = []
    for training in (True, False):
        model.train(training)  # the loss of evaluations is wrong in the same way, if the rows are not read
        loss, _ = trainer.compute_loss(model, dict(batch), return_outputs=True)
        model.zero_grad()
        loss.backward()
        found.append((loss.detach(), *(parameter.grad.clone() for parameter in trained)))
    model.zero_grad()
    logits = model(**inputs).logits[:, :-1].flatten(0, 1)
    F.cross_entropy(logits.float(), batch["labels"][:, 1:].flatten()).backward()
    want = F.cross_entropy(logits.float(), batch["labels"][:, 1:].flatten()).detach()
    for loss, *gradients in found:
        torch.testing.assert_close(loss, want)
        for gradient, parameter in zip(gradients, trained, strict=True):
            torch.testing.assert_close(gradient, parameter.grad)
    weight = model.get_output_embeddings().weight
    assert isinstance(weight, nn.Parameter)
    assert (weight is model.get_input_embeddings().weight) == tied
    with mixed_rows(model, ["default"] * 8), pytest.raises(InputError, match="cannot read mixed_rows in the head"):
        trainer.compute_loss(model, dict(batch))


def test_a_trainer_without_the_mixin_says_that_it_does_not_read_the_rows_of_the_head(
    tmp_path, tiny_llama, tiny_tokenizer
):
    options = {"args": config(trl.SFTConfig, tmp_path), "train_dataset": TEXTS, "processing_class": tiny_tokenizer}
    for output, warned in (("tied", 1), ("frozen", 0)):
        model = attach_rows(tiny_llama(tied=True), [5, 9], output=output)
        trainer = trl.SFTTrainer(model=model, **options)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                trainer.compute_loss(model, dict(batch))
        assert len([each for each in caught if "put kslottery_fast.integrations" in str(each.message)]) == warned


def test_no_copy_of_the_head_is_announced_where_the_loss_calls_the_head(tmp_path, tiny_llama, tiny_tokenizer, recwarn):
    options = {"args": config(trl.SFTConfig, tmp_path), "train_dataset": TEXTS, "processing_class": tiny_tokenizer}
    ids = tiny_tokenizer(" the is")["input_ids"]
    model = tiny_llama(tied=True)
    TicketSFTTrainer(model=model, tickets=ids, output="tied", supervised_logits_only=True, **options)
    assert not [each for each in recwarn if "TRL computes" in str(each.message)]


def test_a_head_without_rows_is_left_to_trl(tmp_path, tiny_llama, tiny_tokenizer, recwarn):
    ids = tiny_tokenizer(" the is")["input_ids"]
    options = {"args": config(trl.SFTConfig, tmp_path), "train_dataset": TEXTS, "processing_class": tiny_tokenizer}
    model = TicketSFTTrainer(model=tiny_llama(tied=True), tickets=ids, **options).model
    assert not [each for each in recwarn if "TRL computes" in str(each.message)]
    assert vars(model)["forward"].__func__.__module__ != "kslottery_fast.integrations.fused_head"


@pytest.mark.parametrize("output", ["frozen", "tied"])
def test_the_reference_of_a_dpo_trainer_with_a_peft_config_is_the_base_model(
    tmp_path, tiny_llama, tiny_tokenizer, output
):
    trainer = TicketDPOTrainer(
        model=tiny_llama(tied=True),
        args=config(trl.DPOConfig, tmp_path, max_steps=4, learning_rate=0.1),
        train_dataset=PAIRS,
        processing_class=tiny_tokenizer,
        peft_config=LORA,
        tickets=tiny_tokenizer(" the is")["input_ids"],
        output=output,
    )
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    start = trainer.compute_ref_log_probs(trainer.model, dict(batch))
    rows = get_rows(trainer.model).rows.detach().clone()
    trainer.train()
    assert (get_rows(trainer.model).rows - rows).abs().max() > 0.05
    for before, after in zip(start, trainer.compute_ref_log_probs(trainer.model, dict(batch)), strict=True):
        assert torch.equal(before, after)
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-4)  # policy and reference agree


def test_a_reference_that_is_a_copy_of_the_adapter_is_refused(tmp_path, tiny_llama, tiny_tokenizer):
    model = peft.get_peft_model(tiny_llama(tied=True), LORA)
    options = {"args": config(trl.DPOConfig, tmp_path), "train_dataset": PAIRS, "processing_class": tiny_tokenizer}
    with pytest.raises(InputError, match=r"a copy of the model's adapter as the reference.*pass ref_model="):
        TicketDPOTrainer(model=model, tickets=tiny_tokenizer(" the is")["input_ids"], **options)
    named = attach_rows(peft.get_peft_model(tiny_llama(tied=True), LORA), [5], name="en-de", freeze=False)
    with pytest.raises(InputError, match="pass ref_model="):  # a set of another name, which TRL does not stumble over
        TicketDPOTrainer(model=named, **options)
    model = peft.get_peft_model(tiny_llama(tied=True), LORA)
    TicketDPOTrainer(
        model=model, ref_model=tiny_llama(tied=True), tickets=tiny_tokenizer(" the is")["input_ids"], **options
    )

"""A Trainer takes a quantized model with rows as it takes one with adapters, and trains the rows alone."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import peft
import pytest
import torch
import trl
from tiny_models import add_adapter, make, quantized
from tiny_trainer import TOKENS, arguments, dataset, losses, train
from torch import nn
from transformers import Trainer

from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.trainer import TicketTrainer, TicketTrainerMixin
from kslottery_fast.rows.attach import get_rows, has_rows


def loaded(model: nn.Module, *, trains: bool = True) -> nn.Module:
    """The marks that transformers leaves on a model that it loaded quantized."""
    config = SimpleNamespace(quant_method="made-up")
    model.is_quantized, model.hf_quantizer = True, SimpleNamespace(is_trainable=trains, quantization_config=config)
    return model


def test_rows_train_on_a_quantized_model_as_on_its_numbers(tmp_path):
    model, plain = quantized(make("llama", tied=False))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="attach trainable adapters"):
        Trainer(model=loaded(model), args=arguments(tmp_path))
    trainer = train(model, tmp_path / "quantized")
    want = losses(train(plain, tmp_path / "plain"))
    assert losses(trainer) == pytest.approx(want, rel=1e-5)
    assert want[-1] != pytest.approx(want[0], rel=1e-3)
    torch.testing.assert_close(get_rows(model).rows, get_rows(plain).rows, rtol=1e-3, atol=1e-3)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    resumed = loaded(quantized(make("llama", tied=False))[0])
    train(resumed, tmp_path / "resumed", resume=tmp_path / "quantized" / "checkpoint-3")
    assert torch.equal(get_rows(resumed).rows, get_rows(model).rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["built", "refused"])
def test_the_model_says_that_it_has_adapters_only_while_the_trainer_is_built(tmp_path, smoothing):
    model = loaded(make("llama"))
    args = arguments(tmp_path, label_smoothing_factor=smoothing)
    try:
        TicketTrainer(model=model, args=args, train_dataset=dataset(), tickets=TOKENS, supervised_logits_only=True)
    except InputError:
        assert smoothing
    assert "_hf_peft_config_loaded" not in vars(model)
    adapted = loaded(make("llama"))
    add_adapter(adapted, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    TicketTrainer(model=adapted, args=arguments(tmp_path), train_dataset=dataset(), tickets=TOKENS)
    assert adapted._hf_peft_config_loaded


def test_a_quantization_that_does_not_train_is_refused_and_the_model_stays_as_it_was(tmp_path):
    model = loaded(make("llama"), trains=False)
    with pytest.raises(InputError, match=r"quantized with made-up, .* load the model in a floating-point dtype, or"):
        TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), tickets=TOKENS)
    assert not has_rows(model)
    del model.hf_quantizer
    with pytest.raises(InputError, match="quantized with an unknown method"):
        TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), tickets=TOKENS)


def test_a_model_init_of_a_quantized_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model_init made a quantized model, .*; pass it there"):
        TicketTrainer(
            model_init=lambda: loaded(make("llama")), args=arguments(tmp_path), train_dataset=dataset(), tickets=TOKENS
        )


@pytest.mark.parametrize("lora", [False, True], ids=["rows alone", "QLoRA"])
def test_rows_stay_float32_where_sft_trainer_makes_everything_that_trains_bfloat16(
    tmp_path, tiny_llama, tiny_tokenizer, lora
):
    class TicketSFTTrainer(TicketTrainerMixin, trl.SFTTrainer):
        pass

    model = loaded(tiny_llama())
    model.is_loaded_in_4bit = True
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = TicketSFTTrainer(
        model=model,
        args=trl.SFTConfig(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, bf16=False, save_strategy="no"),
        train_dataset=datasets.Dataset.from_dict({"text": ["The house is big", "Save the file"] * 8}),
        processing_class=tiny_tokenizer,
        peft_config=config if lora else None,
        tickets=[40, 41, 42],
    )
    kinds = {name: p.dtype for name, p in trainer.model.named_parameters() if "lora_" in name}
    assert set(kinds.values()) == ({torch.bfloat16} if lora else set())  # so the cast was done
    assert get_rows(model).rows.dtype == torch.float32
    assert get_rows(model).rows.requires_grad

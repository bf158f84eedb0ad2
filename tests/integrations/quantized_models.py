"""Attach, train, save and load rows on models that bitsandbytes and torchao quantized, on the CPU; one line for each.

    pip install bitsandbytes torchao && python tests/integrations/quantized_models.py

Run by hand: neither is a dependency of this package or of its tests, which have quantized embeddings of their own
(tests/rows/test_rows_elsewhere.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version

import bitsandbytes
import pytest
import torch
import torchao.quantization as ao
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TrainingArguments

from kslottery_fast import InputError, RowAdamW, attach_rows, get_rows, merge_rows
from kslottery_fast.integrations.trainer import TicketTrainer
from kslottery_fast.rows.adapter_file import load_adapter, save_adapter

TOKENS, IDS = [3, 9], torch.tensor([[3, 4, 5, 9, 3]])
CONFIG = LlamaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    tie_word_embeddings=False,
)


def bits_and_bytes(folder: str, **options: bool) -> LlamaForCausalLM:
    """The linear layers quantized by from_pretrained."""
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**options), device_map="cpu")


def bits_and_bytes_embedding(folder: str, kind: type[nn.Embedding]) -> LlamaForCausalLM:
    """The table itself quantized, by the move to its device, as in bitsandbytes."""
    model = LlamaForCausalLM.from_pretrained(folder)
    table = model.get_input_embeddings().weight.data
    quantized = kind(*table.shape)
    quantized.load_state_dict({"weight": table})
    model.set_input_embeddings(quantized.to("cpu"))
    return model


def torch_ao(folder: str, config: object, *kinds: type[nn.Module]) -> LlamaForCausalLM:
    """The modules of these kinds quantized in place."""
    model = LlamaForCausalLM.from_pretrained(folder)
    ao.quantize_(model, config, filter_fn=lambda module, name: isinstance(module, kinds))
    return model


MODELS: dict[str, Callable[[str], LlamaForCausalLM]] = {
    "bitsandbytes, 4 bits": lambda folder: bits_and_bytes(folder, load_in_4bit=True),
    "bitsandbytes, 8 bits": lambda folder: bits_and_bytes(folder, load_in_8bit=True),
    "bitsandbytes, Embedding4bit": lambda folder: bits_and_bytes_embedding(folder, bitsandbytes.nn.EmbeddingNF4),
    "bitsandbytes, Embedding8bit": lambda folder: bits_and_bytes_embedding(folder, bitsandbytes.nn.Embedding8bit),
    "torchao, int8 layers": lambda folder: torch_ao(folder, ao.Int8WeightOnlyConfig(), nn.Linear),
    "torchao, int8 layers and table": lambda folder: torch_ao(
        folder, ao.Int8WeightOnlyConfig(), nn.Linear, nn.Embedding
    ),
    "torchao, 4-bit table": lambda folder: torch_ao(
        folder,
        ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.granularity.PerGroup(32)),
        nn.Embedding,
    ),
}


def train(model: nn.Module) -> list[float]:
    """Losses of five steps on the attached rows."""
    optimizer = RowAdamW([get_rows(model).rows], lr=0.05)
    losses = []
    for _ in range(5):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 3))
    assert losses == sorted(losses, reverse=True), losses
    return losses


def check(make: Callable[[], LlamaForCausalLM]) -> str:
    """Say what happened. AssertionError if something is wrong."""
    model = make()
    before = model(IDS).logits.detach()
    attach_rows(model, TOKENS)
    assert torch.equal(model(IDS).logits, before)
    losses = train(model)
    embedding = model.get_input_embeddings()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        loaded = load_adapter(make(), folder)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    if embedding.weight.dtype != torch.float32 or type(embedding.weight.data) is not torch.Tensor:
        with pytest.raises(InputError, match="a table that is quantized"):
            merge_rows(model)
    kind = type(embedding.weight.data).__name__
    return f"loss {losses[0]} -> {losses[-1]}, reloaded bit for bit; table {kind} {embedding.weight.dtype}"


def check_trainer(model: LlamaForCausalLM) -> str:
    """Train a model that transformers quantized with TicketTrainer."""
    examples = [{"input_ids": IDS[0], "labels": IDS[0]}] * 4
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=2, learning_rate=0.05, report_to=[], use_cpu=True, disable_tqdm=True
        )
        trainer = TicketTrainer(model=model, args=arguments, train_dataset=examples, tickets=TOKENS)
        start = get_rows(model).rows.detach().clone()
        trainer.train()
    assert not torch.equal(get_rows(model).rows, start)
    return "two steps of TicketTrainer moved the rows"


def main() -> None:
    """Check every model, and print a line for each."""
    print(*(f"{name} {version(name)}" for name in ("bitsandbytes", "torchao", "transformers", "torch")), sep=", ")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(CONFIG).save_pretrained(folder)
        for name, make in MODELS.items():
            print(f"{name}: {check(lambda make=make: make(folder))}")
        for name in ("bitsandbytes, 4 bits", "bitsandbytes, 8 bits"):
            print(f"{name}: {check_trainer(MODELS[name](folder))}")


if __name__ == "__main__":
    main()

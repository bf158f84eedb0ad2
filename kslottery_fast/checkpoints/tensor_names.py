"""Finding the input embedding and the output head of a checkpoint by the names of its tensors and by config.json."""

import re
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import TableName

from .checkpoint import Checkpoint
from .shards import is_shard
from .tensors import StoredTensor

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
    "token_embd.weight",  # GGUF
)
"""How the names of input embeddings end. Any prefix may precede, such as "model." or "base_model.model."."""
HEAD_NAMES = (
    "lm_head.weight",  # nearly all
    "embed_out.weight",  # GPT-NeoX, Pythia
    "output.weight",  # the original LLaMA files, InternLM, GGUF
    "proj_out.weight",  # Whisper
    "predictions.decoder.weight",  # BERT and its kin
    "lm_head.decoder.weight",  # RoBERTa and its kin
    "generator_lm_head.weight",  # ELECTRA
    "lm_loss.weight",  # XLNet
)
"""How the names of output heads end."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|block|blk|h)\.\d+\.")
_NO_HEAD = re.compile(r"(?<!LMHead)(?<!DoubleHeads)Model$|(?:Encoder|Classification|Answering|Choice|Regression)$")
"""The names of architectures without a head that predicts tokens."""
_SHOWN = 12


def find_tensor(checkpoint: Checkpoint, name: str, table: TableName = "input") -> StoredTensor:
    """Find the [V, d] tensor ``name`` of a checkpoint, or one of its two tables if the name is "auto".

    Raises
    ------
    InputError
        There is no such tensor, or it is not a matrix of floats. For "auto", no tensor or several tensors may be the
        table; the message lists the 2-D tensors with their shapes.
    """
    if name == "auto":
        name = find_embedding(checkpoint) if table == "input" else find_head(checkpoint)
    elif name not in checkpoint:
        raise InputError(f"{checkpoint.source} has no tensor {name}; {_matrices_of(checkpoint)}")
    tensor = checkpoint[name]
    if tensor.floats is None:
        if tensor.note:
            raise InputError(f"{tensor} {tensor.note}")
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
        _refuse_packed(checkpoint, INPUT_NAMES)
        raise InputError(f"{checkpoint.source}: {why_not}; name it with tensor=; {_matrices_of(checkpoint)}")
    return name


def locate_embedding(checkpoint: Checkpoint) -> tuple[str | None, str]:
    """Return the name that :func:`find_embedding` returns and "", or None and the reason if it would raise."""
    config = _config(checkpoint)
    sizes = _vocab_sizes(config)
    named = [name for name in checkpoint if is_end_of(name, INPUT_NAMES)]
    # Seq2seq models may also store the copies that their encoder and decoder use.
    named = [name for name in named if is_end_of(name, ("shared.weight",))] or named
    if (
        not named
        and any(part.get("tie_word_embeddings") is True for part in config)
        and not is_shard(checkpoint.source)
    ):
        named = [name for name in checkpoint if is_end_of(name, HEAD_NAMES)]
    return _only(checkpoint, named, sizes, "the input embedding")


def find_head(checkpoint: Checkpoint) -> str:
    """Find the name of the table that the output head multiplies by.

    It ends like one of :data:`HEAD_NAMES`, is outside the layers, and has as many rows as ``vocab_size`` in
    config.json, if there is one. The head of a tied model is not stored. In that case it is the input embedding.

    Raises
    ------
    InputError
        No tensor or several tensors may be the head, or the model has none.
    """
    name, why_not = locate_head(checkpoint)
    if name is None:
        _refuse_packed(checkpoint, HEAD_NAMES)
        raise InputError(f"{checkpoint.source}: {why_not}; name it with tensor=; {_matrices_of(checkpoint)}")
    return name


def locate_head(checkpoint: Checkpoint) -> tuple[str | None, str]:
    """Return the name that :func:`find_head` returns and "", or None and the reason if it would raise."""
    config = _config(checkpoint)
    named = [name for name in checkpoint if is_end_of(name, HEAD_NAMES) and not _LAYER.search(name)]
    if named or is_shard(checkpoint.source):
        return _only(checkpoint, named, _vocab_sizes(config), "the output head")
    if not config:
        return None, "no tensor has the name of an output head, and no config.json says whether the model is tied"
    listed = config[0].get("architectures")
    architectures = [str(each) for each in listed] if isinstance(listed, list) else []
    if architectures and all(_NO_HEAD.search(each) for each in architectures):
        return None, f"{architectures[0]} has no output head"
    # transformers leaves tie_word_embeddings out of config.json where it is True, which is the default.
    if any(part.get("tie_word_embeddings") is False for part in config):
        return None, "no tensor has the name of an output head, and config.json says that the model is not tied"
    return locate_embedding(checkpoint)


def stores_one_table(checkpoint: Checkpoint) -> bool:
    """Tell whether one tensor is both the input embedding and the table of the output head: the model is tied."""
    head = locate_head(checkpoint)[0]
    return head is not None and head == locate_embedding(checkpoint)[0]


def _refuse_packed(checkpoint: Checkpoint, ends: tuple[str, ...]) -> None:
    """Say that the table is packed. Formats that do so give it a name of its own."""
    packed = tuple(end.replace("weight", last) for end in ends for last in ("qweight", "weight_packed"))
    for name in checkpoint:
        if is_end_of(name, packed) and checkpoint[name].note:
            raise InputError(f"{checkpoint[name]} {checkpoint[name].note}")


def _vocab_sizes(config: list[dict[str, Any]]) -> set[int]:
    return {part["vocab_size"] for part in config if type(part.get("vocab_size")) is int}


def _only(checkpoint: Checkpoint, named: list[str], sizes: set[int], what: str) -> tuple[str | None, str]:
    """The only one of these tensors that has as many rows as config.json says, or None and the reason."""
    fitting = [name for name in named if not sizes or checkpoint[name].shape[:1] in {(size,) for size in sizes}]
    if len(fitting) == 1:
        return fitting[0], ""
    if not named:
        found = f"no tensor has the name of an {what.removeprefix('the ')}"
        if is_shard(checkpoint.source):
            found += ", and this is one shard of several: pass the folder or the index"
    elif fitting:
        found = f"{len(fitting)} tensors may be {what}"
    else:
        expected = " or ".join(map(str, sorted(sizes)))
        found = f"{named[0]} is {list(checkpoint[named[0]].shape)}, but config.json has vocab_size {expected}"
    return None, found


def _config(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """config.json, and the configs inside it: multimodal models have one for the text model."""
    content = checkpoint.config()
    if content is None:
        return []
    return [content, *(part for part in content.values() if isinstance(part, dict))]


def is_end_of(name: str, ends: tuple[str, ...]) -> bool:
    """Tell whether a name ends with the parts of one of these."""
    return any(name == end or name.endswith("." + end) for end in ends)


def _matrices_of(checkpoint: Checkpoint) -> str:
    matrices = sorted(checkpoint.matrices(), key=lambda tensor: (-tensor.shape[0], tensor.name))
    if not matrices:
        return "it has no 2-D tensors of floats"
    listed = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in matrices[:_SHOWN])
    return f"its 2-D tensors: {listed}" + (f", and {len(matrices) - _SHOWN} more" if len(matrices) > _SHOWN else "")

"""The tensors of a GGUF file under the names that torch gives them, for comparing it with another format."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from .checkpoint import Checkpoint
from .gguf_file import GgufCheckpoint
from .gguf_header import GgufHeader
from .tensors import StoredTensor

_REORDERED = re.compile(r"\.attn_(?:q|k|qkv)\.(?:weight|bias)$")
_OTHERWISE = {
    "gpt2": re.compile(r"\.attn_output\.weight$"),  # is transposed, and has as many rows as columns
    "gemma": re.compile(r"norm\.weight$"),  # is stored plus one
}
"""What llama.cpp converts to other numbers, by how the architecture begins."""


def named_alike(first: Checkpoint, second: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Give two checkpoints the same names where one of them is in GGUF and the other is not.

    Parameters
    ----------
    first, second : Checkpoint

    Returns
    -------
    tuple of (Checkpoint, Checkpoint)
        The one in GGUF has the names of the other, as far as the package gguf knows them. Matrices whose rows may be in
        another order are left out of it, and a note says so.
    """
    if isinstance(first, GgufCheckpoint) and not isinstance(second, GgufCheckpoint):
        return _renamed(first, second), second
    if isinstance(second, GgufCheckpoint) and not isinstance(first, GgufCheckpoint):
        return first, _renamed(second, first)
    return first, second


def _renamed(checkpoint: GgufCheckpoint, other: Checkpoint) -> Checkpoint:
    architecture = checkpoint.header.architecture
    patterns = [_REORDERED, *(each for start, each in _OTHERWISE.items() if architecture.startswith(start))]
    kept = [name for name in checkpoint if not any(pattern.search(name) for pattern in patterns)]
    names = torch_names(checkpoint.header, other)
    tensors: dict[str, StoredTensor] = {}
    for name in kept:
        tensors[names.get(name, name)] = replace(checkpoint[name], name=names.get(name, name))
    notes = [*checkpoint.notes]
    if len(kept) < len(checkpoint):
        notes.append(
            f"{len(checkpoint) - len(kept)} tensors of {checkpoint.source} are not compared: the conversion to GGUF "
            "may have put their rows in another order or changed their numbers (attention queries and keys)"
        )
    if not names:
        notes.append(f"the package gguf does not know the names of the architecture {architecture!r}")
    return Checkpoint(checkpoint.source, tensors, checkpoint.config, tuple(notes))


def torch_names(header: GgufHeader, names: Iterable[str]) -> dict[str, str]:
    """Find which of the names of a torch checkpoint belongs to each tensor of a GGUF file.

    Parameters
    ----------
    header : GgufHeader
        It tells the architecture and the number of blocks.
    names : iterable of str
        The names in the torch checkpoint. What precedes the names that the package gguf knows is passed over.

    Returns
    -------
    dict of str to str
        It is empty if the package does not know the architecture.
    """
    import gguf

    known = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
    if header.architecture not in known:
        return {}
    table = gguf.get_tensor_name_map(known[header.architecture], header.count(f"{header.architecture}.block_count"))
    found: dict[str, tuple[int, str]] = {}
    for name in names:
        parts = name.split(".")
        for dropped in range(len(parts) - 1):
            own = table.get_name(".".join(parts[dropped:]), try_suffixes=(".weight", ".bias"))
            if own is not None:
                # A vision tower may have layers of the same names, deeper inside.
                found[own] = min(found.get(own, (dropped, name)), (dropped, name))
                break
    return {own: name for own, (_, name) in found.items()}

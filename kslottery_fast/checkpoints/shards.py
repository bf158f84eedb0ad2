"""Checkpoints in several files: those of an index, and those that no index names."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from kslottery_fast.base.errors import InputError

from .tensors import StoredTensor

F = TypeVar("F")

_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)(?P<end>\.\w+)")
_SHOWN = 4


def is_shard(source: str) -> bool:
    """Tell whether a file is one of several, by its name.

    >>> is_shard("a/model-00001-of-00003.safetensors"), is_shard("hf://a/b/x-1-of-2.bin@main"), is_shard("b.bin")
    (True, True, False)
    """
    return re.search(r"-\d+-of-\d+\.(?:safetensors|bin)(?:@|$)", source) is not None


def shard_names(index: object, content: Any) -> dict[str, str]:
    """Read the content of an index: the file of each tensor, which lies in the folder of the index.

    Raises
    ------
    InputError
        It is not the index of a checkpoint.
    """
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index} is not the index of a checkpoint: expected weight_map, a file name for each tensor")
    for shard in shards.values():
        if PurePath(shard).is_absolute() or ".." in PurePath(shard).parts:
            raise InputError(f"{index} names the shard {shard}, which lies outside its folder")
    return shards


def lacking(index: object, file: object, name: str) -> InputError:
    """Make the error about a shard that lacks a tensor which the index says it has."""
    return InputError(f"{file} has no tensor {name}, but {index} says so: they are of different checkpoints")


def read_together(
    folder: str, files: Mapping[str, F], read: Callable[[F], Mapping[str, StoredTensor]]
) -> tuple[dict[str, StoredTensor], str]:
    """Read files that no index names as one checkpoint.

    Parameters
    ----------
    folder : str
        Where the files are, for messages.
    files : mapping of str to file
        The files by their names.
    read : callable
        Reads which tensors a file holds.

    Returns
    -------
    (dict of str to StoredTensor, str)
        The tensors of all files, and a note that says what was done.

    Raises
    ------
    InputError
        Two files have a tensor of the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    owners: dict[str, str] = {}
    for file_name, file in files.items():
        for name, tensor in read(file).items():
            if name in tensors:
                raise InputError(
                    f"{folder} has {len(files)} weight files and no index, and {owners[name]} and {file_name} both "
                    f"have a tensor {name}, so they are not one checkpoint: pass one of them ({_some(list(files))})"
                )
            tensors[name], owners[name] = tensor, file_name
    return tensors, f"{folder} has no index: its {len(files)} weight files are read as one checkpoint"


def refuse_gaps(folder: str, names: Sequence[str]) -> None:
    """Refuse files without an index if some of them are numbered and the others are missing or not numbered.

    Raises
    ------
    InputError
        They are not one checkpoint.
    """
    found = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    if not found:
        return
    first, rest = found[0], {match[0] for match in found}
    count, width = int(first["count"]), len(first["number"])
    if count > len(names) + 1_000_000:  # a name may claim any number
        raise InputError(f"{folder} has no index, and {first[0]} says that it is one of {count} shards")
    all_names = [f"{first['stem']}-{n:0{width}}-of-{first['count']}{first['end']}" for n in range(1, count + 1)]
    missing = [name for name in all_names if name not in rest]
    others = sorted(set(names) - set(all_names))
    if missing:
        raise InputError(f"{folder} has no index and lacks {len(missing)} of {count} shards: {_some(missing)}")
    if others:
        raise InputError(f"{folder} has {count} shards without an index, and other weight files: {_some(others)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

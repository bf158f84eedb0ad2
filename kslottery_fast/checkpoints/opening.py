"""Opening a checkpoint: what a path names, and which files hold its tensors."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from kslottery_fast.base.arguments import check_path
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json

from . import file_errors
from .checkpoint import Checkpoint, ShardedTensors
from .hub_address import hub_address
from .hub_checkpoint import INDEX, SINGLE, cached_folder, open_repository
from .hub_client import offline
from .safetensors_file import read_header
from .shards import lacking, read_together, shard_names
from .tensors import StoredTensor


def open_checkpoint(path: str | os.PathLike[str], name: str = "path") -> Checkpoint:
    """Open a checkpoint: a file, the index of a sharded checkpoint, a folder, or a repository of the Hub.

    Parameters
    ----------
    path : str or path
        The file or folder. In a folder the order is that of transformers: ``model.safetensors``, then its index, then
        all other ``.safetensors`` files together. A str may also be a repository of the Hugging Face Hub: ``org/name``,
        ``org/name@revision`` or ``hf://org/name/file@revision``. Only its headers and the wanted rows are fetched. A
        file or folder of that name comes first.
    name : str
        What an error message calls ``path``.

    Returns
    -------
    Checkpoint

    Raises
    ------
    InputError
        There is nothing, or something else: a pickle, a GGUF file, an adapter, a Git LFS pointer, a file that is cut
        short. The message names the file and says what to do.
    TypeError
        ``path`` is not a path.
    """
    local = check_path(path, name, "a path; ks_select compares models and tables in memory")
    if (address := hub_address(path)) is not None:
        if not offline():
            return open_repository(address, name)
        local = cached_folder(address, name)
    elif not file_errors.exists(local):
        raise file_errors.nothing(local, name)
    return _local(local)


def _local(path: Path) -> Checkpoint:
    if path.is_dir():
        return _folder(path)
    if path.name.endswith(".index.json"):
        return _sharded(path, path)
    if path.suffix in file_errors.PICKLES:
        raise file_errors.pickled(path)
    return _single(path, path)


def _single(path: Path, file: Path) -> Checkpoint:
    return Checkpoint(str(path), read_header(file), partial(_config, file.parent))


def _folder(folder: Path) -> Checkpoint:
    if (folder / SINGLE).exists():
        return _single(folder, folder / SINGLE)
    if (folder / INDEX).exists():
        return _sharded(folder, folder / INDEX)
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} holds an adapter, not a model: merge it into its base model (merge_and_unload of PEFT, or "
            "merge_rows) and save that"
        )
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return _single(folder, found[0])
    if found:
        tensors, note = read_together(str(folder), {file.name: file for file in found}, read_header)
        return Checkpoint(str(folder), tensors, partial(_config, folder), (note,))
    for file in sorted(folder.iterdir()):
        if file.suffix in file_errors.PICKLES and not file.name.startswith(("training_args", "optimizer", "scheduler")):
            raise file_errors.pickled(file)
        if file.suffix == ".gguf":
            raise file_errors.gguf(file)
    raise InputError(f"{folder} holds no checkpoint: it has neither {SINGLE} nor {INDEX}")


def _sharded(path: Path, index: Path) -> Checkpoint:
    shards = shard_names(index, read_json(index))
    for shard in shards.values():
        if Path(shard).suffix in file_errors.PICKLES:
            raise file_errors.pickled(index.parent / shard)
    files = {name: index.parent / shard for name, shard in shards.items()}
    tensors = ShardedTensors(files, partial(_shard, index), partial(lacking, index))
    return Checkpoint(str(path), tensors, partial(_config, index.parent))


def _shard(index: Path, file: Path) -> dict[str, StoredTensor]:
    if not file_errors.exists(file):
        raise InputError(
            f"{file}: no such file, but {index} names it: the checkpoint lacks a shard; {file_errors.AGAIN}"
        )
    return read_header(file)


def _config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a folder, if it has one."""
    path = folder / "config.json"
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not the config of a model: expected a JSON object")
    return content

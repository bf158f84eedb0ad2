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
from .gguf_file import first_part, open_gguf
from .hub_address import hub_address
from .hub_checkpoint import INDEX, SINGLE, WHOLE_MODELS, open_repository
from .hub_client import offline
from .hub_repository import Repository, cached_folder, find_repository
from .pickle_file import holds_weights, read_pickle
from .safetensors_file import read_header
from .saved_distributed import METADATA, read_saved
from .shards import lacking, read_together, refuse_gaps, shard_names
from .tensors import StoredTensor


def open_checkpoint(path: str | os.PathLike[str], name: str = "path") -> Checkpoint:
    """Open a checkpoint: a file, the index of a sharded checkpoint, a folder, or a repository of the Hub.

    Parameters
    ----------
    path : str or path
        The file or folder. In a folder the order is that of transformers: ``model.safetensors``, then its index, then
        all other ``.safetensors`` files together. A str may also be a repository of the Hugging Face Hub: ``org/name``,
        ``org/name@revision`` or ``hf://org/name/file@revision``. Of safetensors and GGUF files only headers and the
        wanted rows are fetched. Files of PyTorch are downloaded whole, after a warning that says how large they are. A
        file or folder of that name comes first.
    name : str
        What an error message calls ``path``.

    Returns
    -------
    Checkpoint

    Raises
    ------
    InputError
        There is nothing, or something else: a pickle of more than tensors, an adapter, a Git LFS pointer, a file that
        is cut short. Or the Hub refuses. The message names the file and says what to do.
    TypeError
        ``path`` is not a path.
    """
    return open_located(located(path, name))


def located(path: str | os.PathLike[str], name: str) -> Path | Repository:
    """Find what a path names: a file or folder, also one in the cache of huggingface_hub, or a repository of the Hub.

    Raises
    ------
    InputError, TypeError
        As :func:`open_checkpoint`.
    """
    local = check_path(path, name, "a path; ks_select compares models and tables in memory")
    if (address := hub_address(path)) is not None:
        return cached_folder(address, name) if offline() else find_repository(address, name)
    if not file_errors.exists(local):
        raise file_errors.nothing(local, name)
    return local


def open_located(path: Path | Repository) -> Checkpoint:
    """Open the checkpoint that :func:`located` has found.

    Raises
    ------
    InputError
        As :func:`open_checkpoint`.
    """
    if isinstance(path, Repository):
        return open_repository(path)
    if path.is_dir():
        return _folder(path)
    if path.name.endswith(".index.json"):
        return _sharded(path, path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    return _single(path, path)


def _single(path: Path, file: Path) -> Checkpoint:
    return Checkpoint(str(path), _read(file), partial(_config, file.parent))


def _read(file: Path) -> dict[str, StoredTensor]:
    """Which tensors a file holds."""
    return read_pickle(file) if file.suffix in file_errors.PICKLES else read_header(file)


def _folder(folder: Path) -> Checkpoint:
    for name in WHOLE_MODELS:
        if (folder / name).is_symlink() and not (folder / name).exists():
            raise file_errors.dangling(folder / name)
        if (folder / name).exists():
            return _sharded(folder, folder / name) if name.endswith(".json") else _single(folder, folder / name)
    if (folder / METADATA).exists():
        return Checkpoint(str(folder), read_saved(folder), partial(_config, folder))
    if (folder / "snapshots").is_dir() and (folder / "refs").is_dir():
        raise _cache_root(folder)
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} holds an adapter, not a model: give it as AFTER and its base model as BEFORE, or merge it into "
            "its base model (merge_and_unload of PEFT, or merge_rows) and save that"
        )
    for found in (sorted(folder.glob("*.safetensors")), _pickles(folder)):
        refuse_gaps(str(folder), [file.name for file in found])
        if len(found) == 1:
            return _single(folder, found[0])
        if found:
            tensors, note = read_together(str(folder), {file.name: file for file in found}, _read)
            return Checkpoint(str(folder), tensors, partial(_config, folder), (note,))
    models = sorted({file.with_name(first_part(file.name)) for file in folder.glob("*.gguf")})
    if len(models) == 1:
        return open_gguf(models[0])
    if models:
        names = ", ".join(file.name for file in models[:4]) + (", ..." if len(models) > 4 else "")
        raise InputError(f"{folder} has {len(models)} GGUF files: pass one of them ({names})")
    raise InputError(f"{folder} holds no checkpoint: it has neither {SINGLE} nor {INDEX}")


def _sharded(path: Path, index: Path) -> Checkpoint:
    shards = shard_names(index, read_json(index))
    files = {name: index.parent / shard for name, shard in shards.items()}
    tensors = ShardedTensors(files, partial(_shard, index), partial(lacking, index))
    return Checkpoint(str(path), tensors, partial(_config, index.parent))


def _shard(index: Path, file: Path) -> dict[str, StoredTensor]:
    if not file_errors.exists(file) and file.is_symlink():
        raise file_errors.dangling(file)
    if not file_errors.exists(file):
        raise InputError(
            f"{file}: no such file, but {index} names it: the checkpoint lacks a shard; {file_errors.AGAIN}"
        )
    return _read(file)


def _pickles(folder: Path) -> list[Path]:
    """The PyTorch files of a folder that may hold weights."""
    found = (file for file in folder.iterdir() if file.suffix in file_errors.PICKLES)
    return sorted(file for file in found if holds_weights(file.name))


def _cache_root(folder: Path) -> InputError:
    """The folder is a repository in the cache of huggingface_hub, whose files lie deeper."""
    found = sorted(each for each in (folder / "snapshots").iterdir() if each.is_dir())
    held = f": pass its snapshot {found[-1]}" if found else ", and it has no snapshot: download the model again"
    return InputError(f"{folder} is a repository in the cache of huggingface_hub{held}")


def _config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a folder, if it has one."""
    path = folder / "config.json"
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not the config of a model: expected a JSON object")
    return content

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
from .safetensors_file import read_header
from .tensors import StoredTensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def open_checkpoint(path: str | os.PathLike[str], name: str = "path") -> Checkpoint:
    """Open a ``.safetensors`` file, the index of a sharded checkpoint, or a Hugging Face folder.

    Parameters
    ----------
    path : str or path
        The file or folder. In a folder the order is that of transformers: ``model.safetensors``, then its index, then
        the only other ``.safetensors`` file.
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
    path = check_path(path, name, "a path; ks_select compares models and tables in memory")
    if not file_errors.exists(path):
        raise InputError(
            f"{name} is {path}: no such file or folder; download a model of the Hugging Face Hub first "
            "(hf download NAME --local-dir FOLDER)"
        )
    if path.is_dir():
        return _folder(path)
    if path.name.endswith(".index.json"):
        return _sharded(path, path)
    if path.suffix == ".gguf":
        return open_gguf(path)
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
            f"{folder} holds an adapter, not a model: give it as AFTER and its base model as BEFORE, or merge it into "
            "its base model (merge_and_unload of PEFT, or merge_rows) and save that"
        )
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return _single(folder, found[0])
    if found:
        names = ", ".join(file.name for file in found[:4]) + (", ..." if len(found) > 4 else "")
        raise InputError(f"{folder} has {len(found)} safetensors files and no {INDEX}: pass one of them ({names})")
    for file in sorted(folder.iterdir()):
        if file.suffix in file_errors.PICKLES and not file.name.startswith(("training_args", "optimizer", "scheduler")):
            raise file_errors.pickled(file)
    models = sorted({first_part(file) for file in folder.glob("*.gguf")})
    if len(models) == 1:
        return open_gguf(models[0])
    if models:
        names = ", ".join(file.name for file in models[:4]) + (", ..." if len(models) > 4 else "")
        raise InputError(f"{folder} has {len(models)} GGUF files: pass one of them ({names})")
    raise InputError(f"{folder} holds no checkpoint: it has neither {SINGLE} nor {INDEX}")


def _sharded(path: Path, index: Path) -> Checkpoint:
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index} is not the index of a checkpoint: expected weight_map, a file name for each tensor")
    for shard in shards.values():
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise InputError(f"{index} names the shard {shard}, which lies outside its folder")
        if Path(shard).suffix in file_errors.PICKLES:
            raise file_errors.pickled(index.parent / shard)
    files = {name: index.parent / shard for name, shard in shards.items()}
    tensors = ShardedTensors(files, partial(_shard, index), partial(_lacking, index))
    return Checkpoint(str(path), tensors, partial(_config, index.parent))


def _shard(index: Path, file: Path) -> dict[str, StoredTensor]:
    if not file_errors.exists(file):
        raise InputError(
            f"{file}: no such file, but {index} names it: the checkpoint lacks a shard; {file_errors.AGAIN}"
        )
    return read_header(file)


def _lacking(index: Path, file: Path, name: str) -> InputError:
    return InputError(f"{file} has no tensor {name}, but {index} says so: they are of different checkpoints")


def _config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a folder, if it has one."""
    path = folder / "config.json"
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not the config of a model: expected a JSON object")
    return content

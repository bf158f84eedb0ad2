"""A checkpoint on disk: which files hold its tensors. Nothing is ever unpickled."""

import os
from collections.abc import Mapping
from pathlib import Path

from kslottery_fast.base.arguments import check_path
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json

from . import file_errors
from .tensor_files import FLOATS, StoredTensor, read_header

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Checkpoint:
    """The tensors of a checkpoint by name. The header of a file is read when it is first needed.

    Parameters
    ----------
    path : Path
        What the user named: a file or a folder.
    files : mapping of str to Path
        The file of each tensor.
    index : Path, optional
        The index of a sharded checkpoint, which ``files`` comes from.
    """

    def __init__(self, path: Path, files: Mapping[str, Path], index: Path | None = None) -> None:
        self.path, self.files, self.index = path, files, index
        self.folder = path if path.is_dir() else path.parent
        self._headers: dict[Path, dict[str, StoredTensor]] = {}

    def __getitem__(self, name: str) -> StoredTensor:
        """The tensor ``name``, which must be one of ``self.files``."""
        file = self.files[name]
        if self.index is not None and not file_errors.exists(file):
            raise InputError(
                f"{file}: no such file, but {self.index} names it: the checkpoint lacks a shard; {file_errors.AGAIN}"
            )
        if file not in self._headers:
            self._headers[file] = read_header(file)
        if name not in self._headers[file]:
            raise InputError(
                f"{file} has no tensor {name}, but {self.index} says so: they are of different checkpoints"
            )
        return self._headers[file][name]

    def matrices(self) -> list[StoredTensor]:
        """All 2-D tensors of a floating dtype, sorted by name."""
        tensors = (self[name] for name in sorted(self.files))
        return [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.dtype in FLOATS]


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
    if path.suffix in file_errors.PICKLES:
        raise file_errors.pickled(path)
    return _single(path, path)


def _single(path: Path, file: Path) -> Checkpoint:
    return Checkpoint(path, dict.fromkeys(read_header(file), file))


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
        names = ", ".join(file.name for file in found[:4]) + (", ..." if len(found) > 4 else "")
        raise InputError(f"{folder} has {len(found)} safetensors files and no {INDEX}: pass one of them ({names})")
    for file in sorted(folder.iterdir()):
        if file.suffix in file_errors.PICKLES and not file.name.startswith(("training_args", "optimizer", "scheduler")):
            raise file_errors.pickled(file)
        if file.suffix == ".gguf":
            raise file_errors.gguf(file)
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
    return Checkpoint(path, {name: index.parent / shard for name, shard in shards.items()}, index)

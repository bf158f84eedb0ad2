"""A checkpoint on the Hugging Face Hub: its headers are fetched first, and then the bytes of the wanted rows alone.

PyTorch files are downloaded whole, since nothing but torch may read what is in a pickle. Those that are wanted together
are downloaded together, after one warning that says how large all of them are.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError

from .adapter_parts import CONFIG
from .checkpoint import Checkpoint, ShardedTensors
from .file_errors import PICKLES
from .gguf_file import first_part
from .header import read_entries
from .hub_address import FILES, Address
from .hub_client import HubFile
from .hub_gguf import open_hub_gguf
from .hub_repository import Repository
from .hub_tensor import HubTensor
from .pickle_file import holds_weights, read_pickle
from .safetensors_file import MAX_HEADER, read_header
from .saved_distributed import METADATA
from .shards import lacking, read_together, refuse_gaps, shard_names
from .tensors import StoredTensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
WHOLE_MODELS = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files that hold or name all tensors of a model, in the order of transformers."""
_WEIGHTS = (".safetensors", ".gguf", *PICKLES)


def open_repository(repository: Repository) -> Checkpoint:
    """Open a checkpoint on the Hub.

    Of safetensors and GGUF files, nothing but headers is fetched before the rows.

    Raises
    ------
    InputError
        The Hub does not give a file, or the address names no checkpoint.
    """
    address = repository.address
    if address.path in repository.names:
        return _checkpoint(repository, repository.folder, [address.path.rpartition("/")[2]])
    return _checkpoint(repository, address.path, _chosen(address, repository.inside(address.path)))


def _chosen(address: Address, names: Sequence[str]) -> list[str]:
    """Choose the files of the checkpoint in a folder, as transformers does."""
    for each in WHOLE_MODELS:
        if each in names:
            return [each]
    if METADATA in names:
        raise InputError(
            f"{address.text} holds what torch.distributed.checkpoint wrote, which is not read from the Hub; "
            f"hf download {address.repository} --local-dir FOLDER, and pass the folder"
        )
    if CONFIG in names:
        raise InputError(f"{address.text} holds an adapter, not a model: give it as AFTER and its base model as BEFORE")
    tensors = sorted(each for each in names if each.endswith(".safetensors"))
    pickles = sorted(each for each in names if each.endswith(PICKLES) and holds_weights(each))
    for found in (tensors, pickles):
        if found:
            refuse_gaps(address.text, found)
            return found
    models = sorted({first_part(each) for each in names if each.endswith(".gguf")})
    if len(models) > 1:
        some = ", ".join(models[:4]) + (", ..." if len(models) > 4 else "")
        folder = f"{address.path}/" if address.path else ""
        raise InputError(
            f"{address.text} has {len(models)} GGUF files: pass one of them, such as "
            f"hf://{address.repository}/{folder}{models[0]} ({some})"
        )
    if not models:
        others = sorted(each for each in names if each.endswith(FILES) and not each.endswith(".json"))
        held = f"it has {', '.join(others[:4])}" if others else "it has no weights at all"
        raise InputError(
            f"{address.text} holds no checkpoint on the Hub: expected {SINGLE} or another file of weights ({held})"
        )
    return models


def _checkpoint(repository: Repository, folder: str, names: Sequence[str]) -> Checkpoint:
    """The checkpoint of one file, of an index, or of several files."""
    places = {name: f"{folder}/{name}" if folder else name for name in names}
    text, config = str(repository), partial(_config, repository, folder)
    read = partial(_read, repository)
    if len(names) > 1:
        files = {name: repository.file(place) for name, place in places.items()}
        _fetch(repository, list(files.values()))
        tensors, note = read_together(text, files, read)
        return Checkpoint(text, tensors, config, (note,))
    (name,) = names
    if name.endswith(".index.json"):
        shards = _sharded(repository, folder, places[name])
        return Checkpoint(text, shards, config, fetch=shards.fetch)
    if name.endswith(".gguf"):
        return open_hub_gguf(repository, places[name])
    if not name.endswith(_WEIGHTS):
        raise InputError(f"{text} is no file of weights: expected one that ends in {', '.join(_WEIGHTS)}")
    return Checkpoint(text, read(repository.file(places[name])), config)


def _sharded(repository: Repository, folder: str, index: str) -> ShardedTensors[HubFile | Path]:
    """The tensors of the shards that an index names."""
    shown = f"hf://{repository.address.repository}/{index}"
    shards = shard_names(shown, repository.json(index))
    places = {shard: f"{folder}/{shard}" if folder else shard for shard in set(shards.values())}
    for place in places.values():
        if place not in repository.names:
            raise InputError(f"{shown} names the shard {place}, which the repository lacks")
        if not place.endswith((".safetensors", *PICKLES)):
            raise InputError(f"{shown} names {place}, which is neither a safetensors nor a PyTorch file")
    opened = {shard: repository.file(place) for shard, place in places.items()}
    files = {name: opened[shard] for name, shard in shards.items()}
    return ShardedTensors(files, partial(_read, repository), partial(lacking, shown), partial(_fetch, repository))


def _config(repository: Repository, folder: str) -> dict[str, Any] | None:
    """The config.json of a folder, if it has one."""
    place = f"{folder}/config.json".lstrip("/")
    if place not in repository.names:
        return None
    content = repository.json(place)
    if not isinstance(content, dict):
        raise InputError(f"{place} of {repository} is not the config of a model: expected a JSON object")
    return content


def _read(repository: Repository, file: HubFile | Path) -> dict[str, StoredTensor]:
    """Which tensors a file holds."""
    if isinstance(file, HubFile):
        if not file.name.endswith(PICKLES):
            return _header(file)
        (file,) = _fetch(repository, [file])
    return read_pickle(file) if file.suffix in PICKLES else read_header(file)


def _fetch(repository: Repository, files: Sequence[HubFile | Path]) -> list[Path]:
    """Download those of the files that are not read by byte ranges. Those that are in the cache by now cost nothing."""
    names = [file.name for file in files if isinstance(file, HubFile) and file.name.endswith(PICKLES)]
    return repository.whole(names, "a PyTorch file cannot be read by byte ranges")


def _header(file: HubFile) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file: 8 bytes say how long the header is, and the header says the rest."""
    length = int.from_bytes(file.read(0, 8), "little")
    size = (file.size or 0) - 8 - length
    if length > MAX_HEADER or size < 0:
        raise InputError(
            f"{file} is damaged or no safetensors file: its header has {length} bytes, and the file {file.size}"
        )
    try:
        entries = read_entries(bytes(file.read(8, 8 + length)) if length else b"", size)
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}") from None
    return {
        name: HubTensor(
            str(file), name, entry.dtype, entry.shape, entry.end - entry.begin, file, 8 + length + entry.begin
        )
        for name, entry in entries.items()
    }

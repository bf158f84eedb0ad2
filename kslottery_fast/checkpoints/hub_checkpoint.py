"""A checkpoint on the Hugging Face Hub: its headers are fetched first, and then the bytes of the wanted rows alone."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from .checkpoint import Checkpoint, ShardedTensors
from .header import read_entries
from .hub_address import FILES, Address
from .hub_client import LIBRARY, HubFile, asked
from .safetensors_file import MAX_HEADER, read_header
from .shards import lacking, read_together, refuse_gaps, shard_names
from .tensors import STORED, RowReader, StoredTensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_MOST_JSON = 64 << 20  # bytes of an index or a config.json, which are read whole


@dataclass(frozen=True)
class HubTensor(StoredTensor):
    """A tensor in a safetensors file on the Hub.

    Attributes
    ----------
    file : HubFile
        The file.
    offset : int
        Where the tensor begins in the file.
    """

    file: HubFile
    offset: int

    @property
    def remote(self) -> bool:
        """See :attr:`StoredTensor.remote`."""
        return True

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`."""
        dtype, shape = STORED[self.dtype], (stop - start, self.width)
        begin, end = (self.offset + row * self.row_bytes for row in (start, stop))
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.file.read(begin, end), dtype=dtype).view(shape)

    @contextmanager
    def opened(self) -> Iterator[RowReader]:
        """Fetch the next block in a thread while a block is compared."""
        thread = ThreadPoolExecutor(1, "kslottery-fetch")
        try:
            yield _Ahead(self, thread)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)


class _Ahead:
    """Reads rows of a tensor, and the rows after them in a thread."""

    def __init__(self, tensor: HubTensor, thread: ThreadPoolExecutor) -> None:
        self._tensor, self._thread = tensor, thread
        self._coming: dict[tuple[int, int], Future[Tensor]] = {}

    def rows(self, start: int, stop: int, /) -> Tensor:
        """Return the rows that are coming, or fetch them."""
        coming = self._coming.pop((start, stop), None)
        return self._tensor.rows(start, stop) if coming is None else coming.result()

    def read_ahead(self, start: int, stop: int, /) -> None:
        """Begin to fetch these rows."""
        if (start, stop) not in self._coming:
            self._coming[start, stop] = self._thread.submit(self._tensor.rows, start, stop)


class _Repository(NamedTuple):
    """A repository at one commit, with the names of its files."""

    address: Address
    commit: str
    names: Sequence[str]

    def file(self, name: str) -> HubFile | Path:
        """A file of the repository: the one in the cache of huggingface_hub if it is there, else the one on the Hub."""
        import huggingface_hub

        cached = huggingface_hub.try_to_load_from_cache(self.address.repository, name, revision=self.commit)
        return Path(cached) if isinstance(cached, str) else HubFile(self.address, self.commit, name)

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        file = self.file(name)
        content = file.read_all(_MOST_JSON) if isinstance(file, HubFile) else file.read_bytes()
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not valid JSON ({error})") from None


def cached_folder(address: Address, name: str) -> Path:
    """Find the folder of a repository in the cache of huggingface_hub, for HF_HUB_OFFLINE.

    Raises
    ------
    InputError
        The cache does not have it.
    """
    import huggingface_hub

    try:
        root = huggingface_hub.snapshot_download(address.repository, revision=address.revision, local_files_only=True)
    except Exception as error:  # of huggingface_hub, whose class depends on its version
        raise InputError(
            f"{name} is {address.text}: no local path, and the cache of huggingface_hub does not have it; unset "
            "HF_HUB_OFFLINE to read it from the Hub"
        ) from error
    return Path(root, address.path)


def open_repository(address: Address, name: str) -> Checkpoint:
    """Open a safetensors checkpoint on the Hub. Nothing but names, an index and headers is fetched before the rows.

    Raises
    ------
    InputError
        The Hub does not give it, or it is no checkpoint of safetensors files. The message calls it ``name``.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(library_name=LIBRARY)
    ask = partial(api.model_info, address.repository, revision=address.revision)
    info = asked(ask, address, f"{name} {address.text}")
    if info.sha is None:
        raise InputError(f"{name} {address.text}: the Hub does not say which commit it is")
    repository = _Repository(address, info.sha, [each.rfilename for each in info.siblings or ()])
    if address.path in repository.names:
        folder, _, chosen = address.path.rpartition("/")
        return _checkpoint(repository, folder, [chosen])
    inside = [each for each in repository.names if each.rpartition("/")[0] == address.path]
    if not inside:
        raise InputError(f"{name} {address.text}: {address.repository} has no file or folder {address.path} on the Hub")
    return _checkpoint(repository, address.path, _chosen(address, [each.rpartition("/")[2] for each in inside]))


def _chosen(address: Address, names: Sequence[str]) -> list[str]:
    """Choose the files of the checkpoint in a folder, as transformers does."""
    for single in (SINGLE, INDEX):
        if single in names:
            return [single]
    if "adapter_config.json" in names:
        raise InputError(f"{address.text} holds an adapter, not a model: download it, and give its folder as AFTER")
    found = sorted(each for each in names if each.endswith(".safetensors"))
    if not found:
        others = sorted(each for each in names if each.endswith(FILES) and not each.endswith(".json"))
        held = f"it has {', '.join(others[:4])}" if others else "it has no weights at all"
        raise InputError(
            f"{address.text} has no safetensors file on the Hub, the only kind that is read by byte ranges ({held}); "
            f"hf download {address.repository} --local-dir FOLDER, and pass the folder"
        )
    refuse_gaps(address.text, found)
    return found


def _checkpoint(repository: _Repository, folder: str, names: Sequence[str]) -> Checkpoint:
    """The checkpoint of one file, of an index, or of several files."""
    places = {name: f"{folder}/{name}" if folder else name for name in names}
    text, config = repository.address.text, partial(_config, repository, folder)
    if len(names) > 1:
        files = {name: repository.file(place) for name, place in places.items()}
        tensors, note = read_together(text, files, _header)
        return Checkpoint(text, tensors, config, (note,))
    (name,) = names
    if name.endswith(".index.json"):
        return Checkpoint(text, _sharded(repository, folder, places[name]), config)
    if not name.endswith(".safetensors"):
        raise InputError(
            f"{text} is no safetensors file, the only kind that is read from the Hub by byte ranges; hf download "
            f"{repository.address.repository} {places[name]} --local-dir FOLDER, and pass that file"
        )
    return Checkpoint(text, _header(repository.file(places[name])), config)


def _sharded(repository: _Repository, folder: str, index: str) -> ShardedTensors[HubFile | Path]:
    """The tensors of the shards that an index names."""
    shown = f"hf://{repository.address.repository}/{index}"
    shards = shard_names(shown, repository.json(index))
    places = {shard: f"{folder}/{shard}" if folder else shard for shard in set(shards.values())}
    for place in places.values():
        if place not in repository.names:
            raise InputError(f"{shown} names the shard {place}, which the repository lacks")
        if not place.endswith(".safetensors"):
            raise InputError(
                f"{shown} names {place}, which is no safetensors file, the only kind that is read from the Hub by byte "
                f"ranges; hf download {repository.address.repository} --local-dir FOLDER, and pass the folder"
            )
    opened = {shard: repository.file(place) for shard, place in places.items()}
    return ShardedTensors({name: opened[shard] for name, shard in shards.items()}, _header, partial(lacking, shown))


def _config(repository: _Repository, folder: str) -> dict[str, Any] | None:
    """The config.json of a folder, if it has one."""
    place = f"{folder}/config.json".lstrip("/")
    if place not in repository.names:
        return None
    content = repository.json(place)
    if not isinstance(content, dict):
        raise InputError(f"{place} of {repository.address.text} is not the config of a model: expected a JSON object")
    return content


def _header(file: HubFile | Path) -> dict[str, StoredTensor]:
    """Which tensors a file holds: 8 bytes say how long the header is, and the header says the rest."""
    if isinstance(file, Path):
        return read_header(file)
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


def fetched_folder(address: Address, patterns: Sequence[str]) -> Path:
    """Fetch small files of a repository, such as those of its tokenizer, into the cache, and return their folder.

    Raises
    ------
    InputError
        The Hub does not give them.
    """
    import huggingface_hub

    folder = address.path.rpartition("/")[0] if address.path.endswith(FILES) else address.path
    inside = [f"{folder}/{pattern}" if folder else pattern for pattern in patterns]
    fetch = partial(
        huggingface_hub.snapshot_download, address.repository, revision=address.revision, allow_patterns=inside
    )
    return Path(asked(fetch, address, address.text), folder)

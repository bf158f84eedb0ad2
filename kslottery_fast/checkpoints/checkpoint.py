"""A checkpoint: its tensors by name, whatever the format and the place."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from .quantized import Decoded
from .tensors import StoredTensor

F = TypeVar("F")


class Checkpoint(Mapping[str, StoredTensor]):
    """The tensors of a checkpoint by name. What is known of a tensor is read when it is first asked for.

    Parameters
    ----------
    source : str
        What the user named, as messages show it.
    tensors : mapping of str to StoredTensor
        The tensors. Its keys are known at once, its values may be read later.
    config : callable, optional
        Reads the config.json of the model. It returns a dict, or None if there is no such file.
    notes : sequence of str
        Remarks on how the checkpoint was read.
    """

    def __init__(
        self,
        source: str,
        tensors: Mapping[str, StoredTensor],
        config: Callable[[], dict[str, Any] | None] = lambda: None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.source, self.config, self.notes = source, config, notes
        self._tensors = Decoded(tensors, config)

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors  # without reading anything, as Mapping would do

    def matrices(self) -> list[StoredTensor]:
        """All 2-D tensors of floats, sorted by name."""
        tensors = (self[name] for name in sorted(self))
        return [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.floats is not None]


class ShardedTensors(Mapping[str, StoredTensor], Generic[F]):
    """The tensors of several files. The header of a file is read when one of its tensors is first asked for.

    Parameters
    ----------
    files : mapping of str to file
        The file of each tensor.
    read : callable
        Reads which tensors a file holds.
    lacking : callable
        Makes the error about a file that lacks a tensor, from both.
    """

    def __init__(
        self,
        files: Mapping[str, F],
        read: Callable[[F], Mapping[str, StoredTensor]],
        lacking: Callable[[F, str], Exception],
    ) -> None:
        self._files, self._read, self._lacking = files, read, lacking
        self._headers: dict[F, Mapping[str, StoredTensor]] = {}

    def __getitem__(self, name: str) -> StoredTensor:
        file = self._files[name]
        if file not in self._headers:
            self._headers[file] = self._read(file)
        if name not in self._headers[file]:
            raise self._lacking(file, name)
        return self._headers[file][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

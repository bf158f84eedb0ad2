"""A checkpoint: its tensors by name, whatever the format and the place."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    fetch : callable, optional
        Called with the names of all tensors that are wanted, before they are asked for. It brings the files that can
        only be downloaded whole, so that one line can say beforehand how large all of them are. Names that the
        checkpoint does not have are passed over.
    """

    def __init__(
        self,
        source: str,
        tensors: Mapping[str, StoredTensor],
        config: Callable[[], dict[str, Any] | None] = lambda: None,
        notes: tuple[str, ...] = (),
        fetch: Callable[[Iterable[str]], None] = lambda _names: None,
    ) -> None:
        self.source, self.config, self.notes, self.fetch = source, config, notes, fetch
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
    together : callable, optional
        Brings several files that are about to be read. By default each is brought when it is read.
    """

    def __init__(
        self,
        files: Mapping[str, F],
        read: Callable[[F], Mapping[str, StoredTensor]],
        lacking: Callable[[F, str], Exception],
        together: Callable[[Sequence[F]], object] = lambda _files: None,
    ) -> None:
        self._files, self._read, self._lacking, self._together = files, read, lacking, together
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

    def fetch(self, names: Iterable[str]) -> None:
        """Bring the files of these tensors together, so that one line can say beforehand how large all of them are."""
        files = dict.fromkeys(self._files[name] for name in names if name in self._files)
        self._together([file for file in files if file not in self._headers])

"""A tensor on the Hugging Face Hub: only the bytes of the wanted rows are fetched."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .hub_client import HubFile
from .tensors import STORED, RowReader, StoredTensor


@dataclass(frozen=True)
class HubTensor(StoredTensor):
    """A tensor in a file on the Hub, with its rows one after the other.

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

"""The checkpoint that a PEFT adapter makes of its base model, without a merge: its tensors over those of the base."""

from __future__ import annotations

import itertools
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.errors import InputError

from .adapter_parts import OLD_WEIGHTS, WEIGHTS, Part, is_adapter, read_config, read_parts, whole
from .checkpoint import Checkpoint
from .pickle_file import read_pickle
from .safetensors_file import read_header
from .tensor_names import HEAD_NAMES, is_end_of, locate_head
from .tensors import RowReader, StoredTensor

__all__ = ["AdaptedTensor", "apply_adapter", "is_adapter"]


@dataclass(frozen=True, eq=False)
class AdaptedTensor(StoredTensor):
    """A matrix of a base model with an adapter over it.

    Attributes
    ----------
    base : StoredTensor
        The matrix that the adapter lies over.
    product : tuple of (Tensor, Tensor), or None
        float32 [V, r] and [r, d], whose product is added.
    ids, values : Tensor
        int64 [k] in rising order and [k, d]: rows that replace those of the base.
    """

    base: StoredTensor
    product: tuple[Tensor, Tensor] | None
    ids: Tensor
    values: Tensor

    @property
    def floats(self) -> torch.dtype:
        """A dtype that holds the numbers of the base and of the adapter."""
        dtype = torch.promote_types(self.base.floats or torch.float32, self.values.dtype)
        return dtype if self.product is None else torch.promote_types(dtype, torch.float32)

    @property
    def remote(self) -> bool:
        """See :attr:`StoredTensor.remote`."""
        return self.base.remote

    def derived_from(self, other: StoredTensor) -> Callable[[int, Tensor], Tensor] | None:
        """See :meth:`StoredTensor.derived_from`."""
        return self.over if other is self.base else None

    def over(self, start: int, block: Tensor) -> Tensor:
        """Return rows of the base from ``start`` on as the adapter makes them. It leaves the others as they are."""
        stop = start + len(block)
        first, last = torch.searchsorted(self.ids, torch.tensor([start, stop])).tolist()
        if self.product is None and first == last:
            return block.to(self.floats)
        block = block.to(self.floats, copy=True)
        if self.product is not None:
            left, right = self.product
            block += left[start:stop] @ right
        block[self.ids[first:last] - start] = self.values[first:last].to(self.floats)
        return block

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`."""
        with self.opened() as reader:
            return reader.rows(start, stop)

    @contextmanager
    def opened(self) -> Iterator[RowReader]:
        """Open the base once for all blocks."""
        with self.base.opened() as reader:
            yield _Rows(reader, self)


class _Rows:
    """The rows of the base with the adapter over them."""

    def __init__(self, reader: RowReader, tensor: AdaptedTensor) -> None:
        self._reader, self._tensor = reader, tensor

    def rows(self, start: int, stop: int, /) -> Tensor:
        return self._tensor.over(start, self._reader.rows(start, stop))

    def read_ahead(self, start: int, stop: int, /) -> None:
        self._reader.read_ahead(start, stop)


@dataclass(frozen=True, eq=False)
class HeldTensor(StoredTensor):
    """A small tensor in memory."""

    values: Tensor

    def rows(self, start: int, stop: int, /) -> Tensor:
        """See :meth:`StoredTensor.rows`."""
        return self.values.reshape(self.height, self.width)[start:stop]


def apply_adapter(folder: Path, base: Checkpoint, source: str | None = None) -> Checkpoint:
    """Open an adapter as the checkpoint that it makes of its base model.

    Parameters
    ----------
    folder : Path
        The directory of a LoRA or TrainableTokens adapter that PEFT or this package wrote.
    base : Checkpoint
        The base model.
    source : str, optional
        What the user named, if that is not the folder.

    Returns
    -------
    Checkpoint
        The tensors of the base, and those of the adapter over them.

    Raises
    ------
    InputError
        A file is missing or damaged, the adapter is of another kind, or it does not fit the base.
    """
    config = read_config(folder)
    path = next((folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).exists()), None)
    if path is None:
        raise InputError(f"{folder} has no {WEIGHTS}: save the adapter again, or copy all of its files")
    stored = read_header(path) if path.name == WEIGHTS else read_pickle(path)
    over = _Over(folder, base, bool(config.get("fan_in_fan_out")))
    parts = read_parts(folder, config, stored)
    over.fetch(parts)
    for module, part in parts.items():
        over.put(module, part)
    if not over.tensors:
        raise InputError(f"{path} holds no tensors; save the adapter again")
    over.join_tied()
    count = len(over.tensors)
    source = str(folder) if source is None else source
    note = f"{source} is an adapter; it changes {count} tensor{'s' * (count != 1)} of {base.source}"
    tensors: Mapping[str, StoredTensor] = ChainMap(over.tensors, base)  # type: ignore[arg-type]
    return Checkpoint(source, tensors, over.config, (*base.notes, note), base.fetch)


class _Over:
    """The tensors that an adapter makes of those of its base."""

    def __init__(self, folder: Path, base: Checkpoint, fan_in_fan_out: bool) -> None:
        self._folder, self._base, self._fan_in_fan_out = folder, base, fan_in_fan_out
        self.tensors: dict[str, StoredTensor] = {}

    def fetch(self, modules: Iterable[str]) -> None:
        """Bring the files of the base that hold the matrices of these modules together."""
        found = (self._names(f"{module}.weight") for module in modules)
        self._base.fetch([names[1] for names in found if names is not None])

    def put(self, module: str, part: Part) -> None:
        """Apply the part of a module."""
        if part.factors or part.rows is not None or "weight" in part.whole:
            name, tensor = self._target(f"{module}.weight")
            tensor = replace(part.whole["weight"], name=name) if "weight" in part.whole else tensor
            self.tensors[name] = self._adapted(tensor, part) if part.factors or part.rows is not None else tensor
        if part.bias is not None or "bias" in part.whole:
            name, tensor = self._target(f"{module}.bias")
            tensor = replace(part.whole["bias"], name=name) if "bias" in part.whole else tensor
            self.tensors[name] = tensor if part.bias is None else self._with_entries(tensor, part.ids, part.bias)

    def join_tied(self) -> None:
        """Forget rows of a head that are those of the input: the head of a tied model follows them."""
        for name, tensor in list(self.tensors.items()):
            if name in self._base or not isinstance(tensor, AdaptedTensor):
                continue
            other = self.tensors.get(locate_head(self._base)[0] or "")
            if (
                isinstance(other, AdaptedTensor)
                and tensor.product is None is other.product
                and torch.equal(tensor.ids, other.ids)
                and torch.equal(tensor.values, other.values)
            ):
                del self.tensors[name]

    def config(self) -> dict[str, Any] | None:
        """The config of the base. It does not tell the size of a vocabulary that was resized with the adapter."""
        config = self._base.config()
        resized = any(
            name in self._base and self._base[name].shape != self.tensors[name].shape for name in self.tensors
        )
        return _without_sizes(config) if config and resized else config

    def _target(self, name: str) -> tuple[str, StoredTensor]:
        """The name that the base gives a tensor, and the tensor that the adapter lies over."""
        found = self._names(name)
        if found is None:
            raise InputError(
                f"{self._folder} changes {name.removeprefix('.')}, which {self._base.source} does not have: give the "
                "base model of the adapter as BEFORE"
            )
        return found[0], self._base[found[1]]

    def _names(self, name: str) -> tuple[str, str] | None:
        """The name of a tensor of the adapter, and what the base calls the one that it lies over."""
        found = name if name in self._base else _same_tensor(name, self._base)
        if found is not None:
            return found, found
        head = locate_head(self._base)[0] if is_end_of(name, HEAD_NAMES) else None
        return (name, head) if head is not None else None

    def _adapted(self, base: StoredTensor, part: Part) -> StoredTensor:
        if base.floats is None:
            why = f"has dtype {base.dtype}, so the adapter cannot be applied; give a base model that is not quantized"
            return replace(base, note=why)
        product, ids, values = None, torch.empty(0, dtype=torch.int64), torch.empty(0, base.width, dtype=base.floats)
        if part.factors:
            product = part.product(base.shape, self._fan_in_fan_out)
            if product is None:
                shapes = ", ".join(f"{end} {list(tensor.shape)}" for end, tensor in part.factors.items())
                raise self._unfit(base, shapes)
        if part.rows is not None:
            values, order = whole(part.rows), torch.tensor(part.ids)
            if max(part.ids) >= base.height:
                raise self._unfit(base, f"a row for token {max(part.ids)}")
            if values.shape != (len(part.ids), base.width):
                raise self._unfit(base, f"rows {list(values.shape)} for {len(part.ids)} token ids")
            ids, order = torch.sort(order)
            values = values[order]
        source = f"{self._folder} over {base.source}"
        nbytes = base.nbytes + (part.rows.nbytes if part.rows is not None else 0)
        dtype = base.dtype
        return AdaptedTensor(source, base.name, dtype, base.shape, nbytes, base, product, ids, values, note=base.note)

    def _with_entries(self, base: StoredTensor, ids: Sequence[int], entries: StoredTensor) -> StoredTensor:
        values, new = whole(base).float(), whole(entries).float()
        if values.ndim != 1 or new.shape != (len(ids),) or max(ids) >= len(values):
            raise self._unfit(base, f"entries {list(new.shape)} for {len(ids)} token ids")
        values[torch.tensor(ids)] = new
        source = f"{self._folder} over {base.source}"
        return HeldTensor(source, base.name, "F32", base.shape, values.nbytes, values)

    def _unfit(self, base: StoredTensor, what: str) -> InputError:
        return InputError(
            f"{self._folder} has {what}, but {base.name} of {self._base.source} is {list(base.shape)}: give the base "
            "model of the adapter as BEFORE, and if its vocabulary was resized for the training, resize it too"
        )


def _without_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """A config without vocab_size, also in the configs inside it."""
    parts = {name: _without_sizes(part) if isinstance(part, dict) else part for name, part in config.items()}
    return {name: part for name, part in parts.items() if name != "vocab_size"}


def _same_tensor(name: str, others: Iterable[str]) -> str | None:
    """The name that ends with most of the same parts, if there is one only and it is of the same layer.

    >>> _same_tensor("model.layers.1.q.weight", ["layers.1.q.weight", "layers.0.q.weight", "layers.1.k.weight"])
    'layers.1.q.weight'
    >>> _same_tensor("model.layers.1.q.weight", ["layers.0.q.weight"]) is None
    True
    """
    parts = name.split(".")[::-1]
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    least = max(2, max(numbers, default=0) + 1)
    lengths: dict[str, int] = {}
    for other in others:
        pairs = zip(parts, other.split(".")[::-1], strict=False)
        lengths[other] = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    best = max(lengths.values(), default=0)
    found = [other for other, length in lengths.items() if length == best]
    return found[0] if best >= least and len(found) == 1 else None

"""What overlaid modules share: the trained rows of one ticket set, several sets by name, and who uses which.

All modules that read one table (input embedding, encoder, decoder, a tied head) hold the same :class:`RowSets`,
so that switching to another set is one assignment and copies nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kslottery_fast.base.errors import InputError
from kslottery_fast.ops import row_embedding

from .tables import base_rows, check_finite, check_token_ids, table_shape


class RowSet(nn.Module):
    """The trained rows of k tokens.

    Attributes
    ----------
    rows : Parameter [k, d], float32 (float64 over a float64 table). ``rows[i]`` stands in for the table's row
        ``token_ids[i]``.
    token_ids : int64 [k], distinct. In the state dict, as ``_extra_state``.
    slots : int32 [V], the index into ``rows`` of each token, -1 for the base row. Not in the state dict: it
        follows from ``token_ids``.

    ``token_ids`` and ``slots`` are no buffers: DistributedDataParallel sends the buffers of rank 0 to all others
    in every forward. So FSDP2 and DataParallel, which move parameters and buffers, leave them behind, and they
    follow the rows when they are next read.
    """

    rows: nn.Parameter
    warned = False

    def __init__(self, rows: torch.Tensor, token_ids: torch.Tensor, vocab_size: int, padding_idx: int | None) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.vocab_size, self.padding_idx = vocab_size, padding_idx
        self._index(token_ids)

    def _index(self, token_ids: torch.Tensor) -> None:
        slots = torch.full((self.vocab_size,), -1, dtype=torch.int32, device=token_ids.device)
        slots[token_ids] = torch.arange(len(token_ids), dtype=torch.int32, device=slots.device)
        self._token_ids, self._slots = token_ids, slots
        pad = self.padding_idx
        self._padding_slot = int(slots[pad]) if pad is not None else -1

    @property
    def token_ids(self) -> torch.Tensor:
        return self._index_here()[0]

    @property
    def slots(self) -> torch.Tensor:
        return self._index_here()[1]

    def _index_here(self) -> tuple[torch.Tensor, torch.Tensor]:
        # Rows that accelerate offloads are on the device meta between forwards, but their ids have values.
        return self.index_on(self._slots.device if self.rows.is_meta else self.rows.device)

    def index_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(token_ids, slots) on the device that computes: moved once, then no more than a comparison."""
        if self._slots.device != device:
            moved = self._token_ids.to(device), self._slots.to(device)
            if device.type == "meta":  # a forward for its shapes alone
                return moved
            self._token_ids, self._slots = moved
        return self._token_ids, self._slots

    def forward(self) -> torch.Tensor:
        """``rows``. Who reads them calls the module, so that hooks on it run, such as DeepSpeed's, which gather."""
        rows = self.rows
        if self.training and not rows.requires_grad and torch.is_grad_enabled():
            self._warn_frozen()
        return rows

    def _warn_frozen(self) -> None:
        if self.warned or torch.compiler.is_compiling():
            return
        self.warned = True
        warnings.warn(
            "the attached rows are read in training but do not train: their requires_grad is False. get_peft_model "
            "freezes rows that it finds; call attach_rows(base_model, token_ids, freeze=False) after it, or "
            "get_rows(model).rows.requires_grad_(True). Rows that should stay as they are give this warning once",
            RuntimeWarning,
            stacklevel=2,
        )

    def input_rows(self) -> torch.Tensor:
        """``rows`` as an input embedding reads them: as in ``nn.Embedding`` the padding row gets no gradient.

        A head gives that row a gradient all the same, in a dense tied model as here.
        """
        rows: torch.Tensor = self()
        if self._padding_slot < 0:
            return rows
        is_padding = torch.arange(len(rows), device=rows.device) == self._padding_slot
        return torch.where(is_padding.unsqueeze(1), rows.detach(), rows)

    def look_up(self, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Rows [*, d] of integer ids [*], in the dtype of the frozen ``table`` [V, d]."""
        rows = self.input_rows()
        return row_embedding(table, rows, self.index_on(rows.device)[1], ids)

    def replace(self, values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """``values`` [*, d] that some other module looked up for ids [*], with our rows in place of its own."""
        rows = self.input_rows()
        slots = self.index_on(rows.device)[1][ids]
        ours = F.embedding(slots.clamp(min=0), rows).to(values.dtype)
        return torch.where((slots >= 0).unsqueeze(-1), ours, values)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        # half(), bfloat16() and to(dtype) come through here. Small AdamW steps vanish in 16 bits, so the rows
        # follow the model to another device but keep their dtype.
        kept = {id(tensor) for tensor in (self.rows, self.rows.grad) if tensor is not None}

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in kept and moved.dtype != tensor.dtype else moved

        super()._apply(move, recurse)
        # By device alone: type(dtype) would cast them, to_empty() drop their values.
        self._index_here()
        return self

    def get_extra_state(self) -> torch.Tensor:
        """``token_ids``: as extra state, so that torch.distributed.checkpoint knows that a state dict has to hold them.

        ``_load_from_state_dict`` reads them, before the rows, in place of a ``set_extra_state``.
        """
        return self.token_ids

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}_extra_state"
        _, _, missing, unexpected, errors = args
        ids, found = None, len(errors)
        if key not in state_dict:
            missing.append(key)
            if f"{prefix}rows" in state_dict:  # with strict=False too: they may be those of other tokens
                errors.append(f"{prefix}rows come without their token ids, {key}")
                return
        else:
            try:
                ids = check_token_ids(state_dict[key], self.vocab_size, key)
            except InputError as error:
                errors.append(str(error))  # load_state_dict raises them all at the end
                return
            if len(ids) != len(self.token_ids):
                errors.append(f"{key} has {len(ids)} token ids, the attached rows are {len(self.token_ids)}")
                return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if key in unexpected:
            unexpected.remove(key)
        if ids is not None and len(errors) == found and f"{prefix}rows" in state_dict:
            # Rows of another width are an error, rows that are not there one or none: ids without theirs stay out.
            self._index(ids.to(self._token_ids.device, copy=True))


class Mixture:
    """Which examples of a batch read which set.

    Parameters
    ----------
    names : the set of each example, None for the base rows.
    copies : how many sequences ``generate`` makes of one example (beams, returned sequences); they stand
        together.
    """

    def __init__(self, names: Sequence[str | None], copies: int) -> None:
        self.names, self.copies = tuple(names), copies
        self._groups: dict[tuple[int, torch.device], list[tuple[str | None, torch.Tensor]]] = {}

    def groups(self, batch_size: int, device: torch.device) -> list[tuple[str | None, torch.Tensor]]:
        """(set, the int64 indices of its examples), for a batch of the given size on that device."""
        key = batch_size, device
        if key not in self._groups:
            if batch_size not in (len(self.names), len(self.names) * self.copies):
                several = f", or {len(self.names) * self.copies} with copies={self.copies}" if self.copies > 1 else ""
                raise InputError(
                    f"the batch has {batch_size} examples, mixed_rows got {len(self.names)} names: give one name an "
                    f"example{several}; with beams or several returned sequences pass copies="
                )
            names = [name for name in self.names for _ in range(batch_size // len(self.names))]
            self._groups[key] = [
                (name, torch.tensor([i for i, other in enumerate(names) if other == name], device=device))
                for name in dict.fromkeys(names)
            ]
        return self._groups[key]


class RowSets(nn.ModuleDict):
    """The ticket sets of one model by name, which of them is in use, and the mixture of the running batch."""

    active: str | None = None
    mixture: Mixture | None = None

    def __init__(self, name: str, row_set: RowSet) -> None:
        super().__init__({name: row_set})
        self.active = name

    def current(self) -> RowSet:
        """The set in use; InputError if that is the base."""
        if self.active is None:
            raise InputError("no rows are in use; call use_rows(model, name) first")
        return self[self.active]  # type: ignore[return-value]


def new_row_set(embedding: nn.Embedding, ids: torch.Tensor) -> RowSet:
    """Rows that are equal to those of the table, in float32 (float64 over a float64 table)."""
    values = base_rows(embedding, ids)
    if not values.is_floating_point():
        raise InputError(
            f"the embedding table is quantized ({values.dtype}) and {type(embedding).__name__} does not dequantize it; "
            "load it in a floating-point dtype"
        )
    check_finite(values, ids, "cannot attach rows, the table is damaged")
    values = values.to(torch.promote_types(values.dtype, torch.float32), copy=True)
    return RowSet(values, ids.to(values.device, copy=True), table_shape(embedding)[0], embedding.padding_idx)


def check_name(name: str) -> None:
    """Refuse a name that cannot be part of a parameter's name."""
    if not isinstance(name, str) or not name or "." in name or hasattr(RowSets, name):
        raise InputError(
            f"name is {name!r}: expected a string without dots that a module has no attribute of, such as 'en-de'"
        )

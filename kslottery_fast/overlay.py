"""The modules that read some rows from a small trained parameter in place of the table.

An attached module stays the same object and changes its class, the way ``torch.nn.utils.parametrize`` does
it. So hooks, attributes (a scale, a padding index) and every reference to the module live on, and taking the
rows off is exact.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .errors import InputError
from .ops import row_embedding
from .tables import check_token_ids


class Overlay(nn.Module):
    """What an embedding and a tied output head with attached rows have in common."""

    overlaid: type[nn.Module]
    """The class that the module had, and gets back."""
    rows: nn.Parameter
    """[k, d] float32 (float64 over a float64 table): row i stands in for the table's row ``token_ids[i]``."""
    token_ids: torch.Tensor
    """int64 [k], distinct."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        # half(), bfloat16() and to(dtype) come through here. Small AdamW steps vanish in 16 bits, so the rows
        # follow the model to another device but keep their dtype.
        kept = {id(tensor) for tensor in (self.rows, self.rows.grad) if tensor is not None}

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in kept and moved.dtype != tensor.dtype else moved

        return super()._apply(move, recurse)


class RowEmbedding(Overlay, nn.Embedding):
    """An embedding in which ``token_ids[i]`` reads ``rows[i]`` and every other token the frozen ``weight``.

    Made by :func:`kslottery_fast.rows.attach_rows`, never by hand. ``weight`` [V, d] is the model's own
    Parameter, not a copy. The output has the dtype of ``weight``. As in ``nn.Embedding``, the row of
    ``padding_idx`` is read but gets no gradient.

    Attributes
    ----------
    rows : Parameter [k, d], float32 (float64 over a float64 table).
    token_ids : int64 [k].
    slots : int32 [V], the index into ``rows`` of each token, -1 for the base row. It is not in the state
        dict: it follows from ``token_ids``.
    """

    overlaid = nn.Embedding
    slots: torch.Tensor
    _trained_pad: int | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Look up integer ids [*]; returns [*, d]."""
        rows: torch.Tensor = self.rows
        if self._trained_pad is not None:
            rows = torch.where(torch.eq(self.token_ids, self._trained_pad).unsqueeze(1), rows.detach(), rows)
        return row_embedding(self.weight, rows, self.slots, input.long())

    def reindex(self) -> None:
        """Rebuild ``slots`` from ``token_ids``."""
        slots = torch.full((self.weight.shape[0],), -1, dtype=torch.int32, device=self.token_ids.device)
        slots[self.token_ids] = torch.arange(len(self.token_ids), dtype=torch.int32, device=slots.device)
        self.register_buffer("slots", slots, persistent=False)
        pad = self.padding_idx
        self._trained_pad = pad if pad is not None and bool(torch.eq(self.token_ids, pad).any()) else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key, errors = f"{prefix}token_ids", args[-1]
        try:
            if key in state_dict:
                check_token_ids(state_dict[key], self.weight.shape[0], key)
        except InputError as error:
            errors.append(str(error))  # load_state_dict raises them all at the end
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.reindex()


class RowHead(Overlay):
    """A tied head that follows the rows: ``rows[i]`` gives the logit of ``token_ids[i]``; bias kept."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden states [*, d] to logits [*, V]."""
        logits = super().forward(hidden)
        bias = getattr(self, "bias", None)
        columns = F.linear(hidden, self.rows.to(hidden.dtype), None if bias is None else bias[self.token_ids])
        # In place: nobody else holds these logits, and a second [*, V] tensor costs more than the k columns.
        return logits.index_copy_(-1, self.token_ids, columns.to(logits.dtype))


def overlay(module: nn.Module, kind: type[Overlay], rows: nn.Parameter, token_ids: torch.Tensor) -> None:
    """Make ``module`` read ``rows`` [k, d] at ``token_ids`` [k]; several modules may share one parameter."""
    _set_class(module, _overlay_class(type(module), kind))  # type: ignore[arg-type]
    module.rows = rows
    module.register_buffer("token_ids", token_ids)
    if isinstance(module, RowEmbedding):
        module.reindex()
        _check_reached(module)


def remove_overlay(module: Overlay) -> None:
    """Give the module back its own class and drop all that :func:`overlay` put on it."""
    for name in ("rows", "token_ids", "slots", "_trained_pad"):
        if hasattr(module, name):
            delattr(module, name)
    _set_class(module, type(module).overlaid)


@functools.cache
def _overlay_class(base: type[nn.Module], kind: type[Overlay]) -> type[Overlay]:
    if base is nn.Embedding:
        return RowEmbedding
    # A *ScaledWordEmbedding multiplies what super().forward returns. With RowEmbedding behind it in the order
    # of resolution, super() finds the rows, and the scale applies to them as to any other row. A head comes
    # the other way round: first its own logits, then the columns.
    bases = (base, kind) if kind is RowEmbedding else (kind, base)
    return type(f"Row{base.__name__}", bases, {"overlaid": base, "__module__": __name__})


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    module.__class__ = cls
    if "_old_forward" in vars(module):  # accelerate's hooks call the forward that they found
        vars(module)["_old_forward"] = types.MethodType(cls.forward, module)


def _check_reached(module: RowEmbedding) -> None:
    """Refuse an embedding whose own forward never asks nn.Embedding's: it would ignore the rows."""
    with torch.enable_grad():
        # Through the class, so that no hook fires. A gradient can only come from the rows: all else is
        # frozen.
        reached = type(module).forward(module, module.token_ids[:1]).requires_grad
    if not reached:
        name = type(module).overlaid.__name__
        raise InputError(f"{name} does not call nn.Embedding.forward, so rows cannot be attached to it")

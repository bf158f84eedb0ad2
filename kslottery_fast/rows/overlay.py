"""The modules that read some rows from a small trained parameter in place of the table.

An attached module stays the same object and changes its class, the way ``torch.nn.utils.parametrize`` does
it. So hooks, attributes (a scale, a padding index) and every reference to the module live on, and taking the
rows off is exact.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, SupportsIndex

import torch
from torch import nn
from torch.nn import functional as F

from kslottery_fast.base.errors import InputError

from .rowset import RowSet, RowSets


class Overlay(nn.Module):
    """What an embedding and a tied output head with attached rows have in common."""

    overlaid: type[nn.Module]
    """The class that the module had, and gets back."""
    row_sets: RowSets
    """Shared by all overlaid modules of a model."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Pickle finds a class by its name, and the classes of overlays are made while the program runs.
        kind = next(each for each in (RowOutput, RowEmbedding, RowHead) if isinstance(self, each))
        made: Any = super().__reduce_ex__(protocol)  # copyreg.__newobj__, the class, and what the module holds
        return _new_overlay, (type(self).overlaid, kind), *made[2:]

    @property
    def rows(self) -> nn.Parameter:
        """[k, d] float32 (float64 over a float64 table), of the set in use."""
        return self.row_sets.current().rows

    @property
    def token_ids(self) -> torch.Tensor:
        """int64 [k], distinct: ``rows[i]`` stands in for the table's row ``token_ids[i]``."""
        return self.row_sets.current().token_ids

    @property
    def slots(self) -> torch.Tensor:
        """int32 [V], the index into ``rows`` of each token, -1 for the base row."""
        return self.row_sets.current().slots


class RowEmbedding(Overlay, nn.Embedding):
    """An embedding in which ``token_ids[i]`` reads ``rows[i]`` and every other token the frozen ``weight``.

    Made by :func:`kslottery_fast.rows.attach_rows`, never by hand. ``weight`` [V, d] is the model's own
    Parameter, not a copy. The output has the dtype of ``weight``. As in ``nn.Embedding``, the row of
    ``padding_idx`` is read but gets no gradient from here.
    """

    overlaid = nn.Embedding

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Look up integer ids [*]; returns [*, d]."""
        ids, sets = input.long(), self.row_sets
        if sets.mixture is None:
            return self._look_up(None if sets.active is None else sets.current(), ids)
        groups = sets.mixture.groups(len(ids), ids.device)
        parts = [self._look_up(_named(sets, name), ids[examples]) for name, examples in groups]
        return torch.cat(parts)[torch.cat([examples for _, examples in groups]).argsort()]

    def _look_up(self, row_set: RowSet | None, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight) if row_set is None else row_set.look_up(self.weight, ids)


class RowOutput(RowEmbedding):
    """A RowEmbedding over a quantized table: that module's own forward looks up, then rows replace its output."""

    def _look_up(self, row_set: RowSet | None, ids: torch.Tensor) -> torch.Tensor:
        values = type(self).overlaid.forward(self, ids).detach()
        return values if row_set is None else row_set.replace(values, ids)


class RowHead(Overlay):
    """A tied head that follows the rows: ``rows[i]`` gives the logit of ``token_ids[i]``; bias kept.

    It trains the row of ``padding_idx`` too, as the head of a dense tied model does.
    """

    weight: torch.Tensor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden states [*, d] to logits [*, V]."""
        logits, sets = super().forward(hidden), self.row_sets
        if sets.mixture is None:
            return logits if sets.active is None else self._follow(logits, sets.current(), hidden)
        for name, examples in sets.mixture.groups(len(hidden), hidden.device):
            row_set = _named(sets, name)
            if row_set is not None:
                rows, ids = _read(row_set)
                columns = self._columns(rows, ids, hidden[examples]).to(logits.dtype)
                # [g, ..., k] into [B, ..., V]: seen from the vocabulary, tokens and examples lead.
                place = ids[:, None], examples[None, :]
                logits.movedim(-1, 0).index_put_(place, columns.movedim(-1, 0))
        return logits

    def _columns(self, rows: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        bias = getattr(self, "bias", None)
        return F.linear(hidden, rows.to(hidden.dtype), None if bias is None else bias[ids])

    def _follow(self, logits: torch.Tensor, row_set: RowSet, hidden: torch.Tensor) -> torch.Tensor:
        # In place: nobody else holds these logits, and a second [*, V] tensor costs more than k columns.
        rows, ids = _read(row_set)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return logits.index_copy_(-1, ids, self._columns(rows, ids, hidden).to(logits.dtype))
        with torch.no_grad():
            columns = self._columns(rows, ids, hidden).to(logits.dtype)
        change = F.linear(hidden, (rows - self.weight.detach()[ids]).to(hidden.dtype)).to(logits.dtype)
        return _ReplaceColumns.apply(logits, columns, change, ids)


class _ReplaceColumns(torch.autograd.Function):
    """``logits.index_copy_(-1, ids, columns)`` whose backward does not copy the gradient [*, V].

    Autograd's own backward clones it to put zeros where the columns were replaced: 3 % of a training step at V 49,152,
    6 % at 128,256. Here all of it goes on to the logits, and what the replaced columns get wrongly that way is undone
    through ``change``: new columns minus old ones. Its values are not used.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, columns: torch.Tensor, change: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        del change
        ctx.save_for_backward(ids)
        ctx.mark_dirty(logits)
        return logits.index_copy_(-1, ids, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor, None]:
        (ids,) = ctx.saved_tensors
        return gradients[0], None, gradients[0].index_select(-1, ids), None


def _named(sets: RowSets, name: str | None) -> RowSet | None:
    return None if name is None else sets[name]  # type: ignore[return-value]


def _read(row_set: RowSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [k, d] and their token ids [k], on one device."""
    rows: torch.Tensor = row_set()
    return rows, row_set.index_on(rows.device)[0]


def overlay(module: nn.Module, kind: type[Overlay], row_sets: RowSets) -> None:
    """Make ``module`` read the set in use of ``row_sets``, which several modules may share."""
    _set_class(module, _overlay_class(type(module), kind))  # type: ignore[arg-type]
    module.row_sets = row_sets
    if isinstance(module, RowEmbedding):
        _check_reached(module)


def remove_overlay(module: Overlay) -> None:
    """Give the module back its own class and drop what :func:`overlay` put on it."""
    if hasattr(module, "row_sets"):
        del module.row_sets
    _set_class(module, type(module).overlaid)


@functools.cache
def _overlay_class(base: type[nn.Module], kind: type[Overlay]) -> type[Overlay]:
    if base is nn.Embedding and kind is RowEmbedding:
        return RowEmbedding
    # A *ScaledWordEmbedding multiplies what super().forward returns. With RowEmbedding behind it in the order
    # of resolution, super() finds the rows, and the scale applies to them as to any other row. A head comes
    # the other way round: first its own logits, then the columns. So does a quantized embedding.
    bases = (base, kind) if kind is RowEmbedding else (kind, base)
    return type(f"Row{base.__name__}", bases, {"overlaid": base, "__module__": __name__})


def _new_overlay(base: type[nn.Module], kind: type[Overlay]) -> Overlay:
    """A module without state, for pickle and deepcopy."""
    made = _overlay_class(base, kind)  # type: ignore[arg-type]
    return made.__new__(made)


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    module.__class__ = cls
    if "_old_forward" in vars(module):  # accelerate's hooks call the forward that they found
        vars(module)["_old_forward"] = types.MethodType(cls.forward, module)


def _check_reached(module: RowEmbedding) -> None:
    """Refuse an embedding whose own forward never asks nn.Embedding's: it would ignore the rows."""
    asked = []
    look_up: Callable[..., torch.Tensor] = module._look_up

    def ask(row_set: RowSet | None, ids: torch.Tensor) -> torch.Tensor:
        asked.append(True)
        # An offloaded table has no values to look up, and none are needed to know.
        return module.rows[:1] if module.weight.is_meta else look_up(row_set, ids)

    vars(module)["_look_up"] = ask
    try:
        with torch.no_grad():
            type(module).forward(module, module.token_ids[:1])  # through the class, so that no hook fires
    finally:
        del vars(module)["_look_up"]
    if not asked:
        name = type(module).overlaid.__name__
        raise InputError(f"{name} does not call nn.Embedding.forward, so rows cannot be attached to it")

"""The modules that read some rows from a small trained parameter in place of the table.

An attached module stays the same object and changes its class, the way ``torch.nn.utils.parametrize`` does it.
Therefore hooks, attributes (a scale, a padding index) and every reference to the module stay valid, and taking the rows
off is exact.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, SupportsIndex

import torch
from torch import nn
from torch.nn import functional as F

from kslottery_fast.base.errors import InputError

from .columns import replace_columns
from .rowset import RowSet, RowSets
from .tables import is_quantized


class Overlay(nn.Module):
    """What an embedding and an output head with attached rows have in common."""

    overlaid: type[nn.Module]
    """The class that the module had before, and gets back."""
    row_sets: RowSets
    """Shared by all overlaid modules of a model."""

    def __repr__(self) -> str:
        if not hasattr(self, "row_sets"):
            return super().__repr__()
        sizes = {name: self._part(row_set).k for name, row_set in self.row_sets.items()}
        return f"{type(self).__name__}({self.extra_repr()}, rows={sizes}, in_use={self.row_sets.active!r})"

    def summary(self) -> str:
        """Return a line for each attached set, and one for the role of the output head if the model has a head.

        The line of a set has its rows, their dtype, whether they train, and which set is in use.

        Examples
        --------
        >>> from kslottery_fast import attach_rows
        >>> print(attach_rows(nn.Embedding(10, 4), [7, 3], name="en-de").summary())
        'en-de' (in use): 2 of 10 rows, d=4, float32, trainable
        """
        return self.row_sets.summary()

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Pickle finds a class by its name, but the classes of overlays are made while the program runs.
        kind = next(each for each in (RowOutput, RowEmbedding, RowHead) if isinstance(self, each))
        made: Any = super().__reduce_ex__(protocol)  # copyreg.__newobj__, the class, and what the module holds
        return _new_overlay, (type(self).overlaid, kind), *made[2:]

    def _part(self, row_set: RowSet) -> RowSet:
        """The rows of a set that this module reads."""
        return row_set

    @property
    def rows(self) -> nn.Parameter:
        """The rows of the set in use: [k, d] float32, or float64 over a float64 table."""
        return self._part(self.row_sets.current()).rows

    @property
    def token_ids(self) -> torch.Tensor:
        """The token ids of the set in use: int64 [k], distinct. Token ``token_ids[i]`` reads ``rows[i]``."""
        return self._part(self.row_sets.current()).token_ids

    @property
    def slots(self) -> torch.Tensor:
        """The index into ``rows`` of each token: int32 [V], -1 for tokens that read the table."""
        return self._part(self.row_sets.current()).slots


class RowEmbedding(Overlay, nn.Embedding):
    """An embedding in which ``token_ids[i]`` reads ``rows[i]`` and every other token the frozen ``weight``.

    :func:`kslottery_fast.rows.attach_rows` makes it, and :func:`kslottery_fast.rows.get_rows` finds it. ``weight``
    [V, d] is the model's own Parameter, not a copy. The output has the dtype of ``weight``. As in ``nn.Embedding``, the
    row of ``padding_idx`` is read but gets no gradient from here.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> embedding = attach_rows(nn.Embedding(10, 4), [7, 3])
    >>> embedding.token_ids, embedding.rows.shape, embedding(torch.tensor([[7, 1]])).shape
    (tensor([7, 3]), torch.Size([2, 4]), torch.Size([1, 2, 4]))
    """

    overlaid = nn.Embedding

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Look up integer ids [*]. Returns [*, d]."""
        ids, sets = input.long(), self.row_sets
        if sets.mixture is None:
            return self._look_up(None if sets.active is None else sets.current(), ids)
        groups = sets.mixture.groups(len(ids), ids.device)
        parts = [self._look_up(_named(sets, name), ids[examples]) for name, examples in groups]
        return torch.cat(parts)[torch.cat([examples for _, examples in groups]).argsort()]

    def _look_up(self, row_set: RowSet | None, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight) if row_set is None else row_set.look_up(self.weight, ids)


class RowOutput(RowEmbedding):
    """A RowEmbedding over a quantized table: the module's own forward looks up, and rows replace some of its output."""

    def _look_up(self, row_set: RowSet | None, ids: torch.Tensor) -> torch.Tensor:
        values = type(self).overlaid.forward(self, ids).detach()
        return values if row_set is None else row_set.replace(values, ids)


class RowHead(Overlay):
    """An output head in which ``rows[i]`` gives the logit of ``token_ids[i]``.

    The rows are those of the input embedding (``output="tied"``), or the head's own (``output="own"``). Own rows bring
    their bias entries. For rows of the input, the head keeps its bias. It trains the row of ``padding_idx`` too, as the
    head of a dense tied model does.
    """

    weight: torch.Tensor

    @property
    def row_bias(self) -> nn.Parameter | None:
        """The trained bias entries [k] of the set in use, None if the head has no bias or no rows of its own."""
        return self._part(self.row_sets.current()).bias

    def _part(self, row_set: RowSet) -> RowSet:
        return row_set.head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden states [*, d] to logits [*, V]."""
        logits, sets = super().forward(hidden), self.row_sets
        if sets.mixture is None:
            return logits if sets.active is None else self._replace(logits, self._part(sets.current()), hidden)
        if torch.is_grad_enabled() and is_quantized(self):
            logits = logits.clone()  # what comes out of a quantized product may not be written into
        for name, examples in sets.mixture.groups(len(hidden), hidden.device):
            row_set = _named(sets, name)
            if row_set is not None:
                rows, bias, ids = self._part(row_set).read()
                columns = self._columns(rows, bias, ids, hidden[examples]).to(logits.dtype)
                # [g, ..., k] goes into [B, ..., V]. With the vocabulary first, the two indexed dimensions lead.
                place = ids[:, None], examples[None, :]
                logits.movedim(-1, 0).index_put_(place, columns.movedim(-1, 0))
        return logits

    def _columns(
        self, rows: torch.Tensor, bias: torch.Tensor | None, ids: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        if bias is not None:
            bias = bias.to(hidden.dtype)
        elif (kept := getattr(self, "bias", None)) is not None:
            bias = kept[ids]
        return F.linear(hidden, rows.to(hidden.dtype), bias)

    def _replace(self, logits: torch.Tensor, row_set: RowSet, hidden: torch.Tensor) -> torch.Tensor:
        # In place, since nobody else holds these logits and a second [*, V] tensor costs more than k columns.
        rows, bias, ids = row_set.read()
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return logits.index_copy_(-1, ids, self._columns(rows, bias, ids, hidden).to(logits.dtype))
        if is_quantized(self):  # it has no rows to subtract, so that autograd's own backward has to do
            return logits.index_copy(-1, ids, self._columns(rows, bias, ids, hidden).to(logits.dtype))
        with torch.no_grad():
            columns = self._columns(rows, bias, ids, hidden).to(logits.dtype)
        change = F.linear(
            hidden,
            (rows - self.weight.detach()[ids]).to(hidden.dtype),
            None if bias is None else bias.to(hidden.dtype),
        )
        return replace_columns(logits, columns, change.to(logits.dtype), ids)


def _named(sets: RowSets, name: str | None) -> RowSet | None:
    return None if name is None else sets[name]


def overlay(module: nn.Module, kind: type[Overlay], row_sets: RowSets) -> None:
    """Let ``module`` read the set in use of ``row_sets``, which several modules may share."""
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
    # A *ScaledWordEmbedding multiplies what super().forward returns. With RowEmbedding behind it in the method
    # resolution order, super() finds the rows, and they are scaled like any other row. A head needs the other order:
    # first its own logits, then the columns. So does a quantized embedding.
    bases = (base, kind) if kind is RowEmbedding else (kind, base)
    return type(f"Row{base.__name__}", bases, {"overlaid": base, "__module__": __name__})


def _new_overlay(base: type[nn.Module], kind: type[Overlay]) -> Overlay:
    """A module without state, for pickle and deepcopy."""
    made = _overlay_class(base, kind)  # type: ignore[arg-type]
    return made.__new__(made)


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    module.__class__ = cls
    if "_old_forward" in vars(module):  # accelerate's hooks call the forward that they found when they were added
        vars(module)["_old_forward"] = types.MethodType(cls.forward, module)


def _check_reached(module: RowEmbedding) -> None:
    """Refuse an embedding whose own forward never calls that of nn.Embedding, since it would ignore the rows."""
    asked = []
    look_up: Callable[..., torch.Tensor] = module._look_up

    def ask(row_set: RowSet | None, ids: torch.Tensor) -> torch.Tensor:
        asked.append(True)
        # An offloaded table has no values to look up, and none are needed to tell.
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

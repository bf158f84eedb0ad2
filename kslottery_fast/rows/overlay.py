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

from .rowset import RowSet, RowSets


class Overlay(nn.Module):
    """What an embedding and a tied output head with attached rows have in common."""

    overlaid: type[nn.Module]
    """The class that the module had before, and gets back."""
    row_sets: RowSets
    """Shared by all overlaid modules of a model."""

    def __repr__(self) -> str:
        if not hasattr(self, "row_sets"):
            return super().__repr__()
        sizes = {name: row_set.k for name, row_set in self.row_sets.items()}
        return f"{type(self).__name__}({self.extra_repr()}, rows={sizes}, in_use={self.row_sets.active!r})"

    def summary(self) -> str:
        """Return a line for each attached set: its rows, their dtype, whether they train, and which set is in use.

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

    @property
    def rows(self) -> nn.Parameter:
        """The rows of the set in use: [k, d] float32, or float64 over a float64 table."""
        return self.row_sets.current().rows

    @property
    def token_ids(self) -> torch.Tensor:
        """The token ids of the set in use: int64 [k], distinct. Token ``token_ids[i]`` reads ``rows[i]``."""
        return self.row_sets.current().token_ids

    @property
    def slots(self) -> torch.Tensor:
        """The index into ``rows`` of each token: int32 [V], -1 for tokens that read the table."""
        return self.row_sets.current().slots


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
        if sets.off():
            return self._look_up(None, ids)
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
    """A tied head that follows the rows: ``rows[i]`` gives the logit of ``token_ids[i]``. A bias is kept.

    It trains the row of ``padding_idx`` too, as the head of a dense tied model does.
    """

    weight: torch.Tensor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden states [*, d] to logits [*, V]."""
        logits, sets = super().forward(hidden), self.row_sets
        if sets.off():
            return logits
        if sets.mixture is None:
            return logits if sets.active is None else self._follow(logits, sets.current(), hidden)
        for name, examples in sets.mixture.groups(len(hidden), hidden.device):
            row_set = _named(sets, name)
            if row_set is not None:
                rows, ids = _read(row_set)
                columns = self._columns(rows, ids, hidden[examples]).to(logits.dtype)
                # [g, ..., k] goes into [B, ..., V]. With the vocabulary first, the two indexed dimensions lead.
                place = ids[:, None], examples[None, :]
                logits.movedim(-1, 0).index_put_(place, columns.movedim(-1, 0))
        return logits

    def _columns(self, rows: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        bias = getattr(self, "bias", None)
        return F.linear(hidden, rows.to(hidden.dtype), None if bias is None else bias[ids])

    def _follow(self, logits: torch.Tensor, row_set: RowSet, hidden: torch.Tensor) -> torch.Tensor:
        # In place, since nobody else holds these logits and a second [*, V] tensor costs more than k columns.
        rows, ids = _read(row_set)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return logits.index_copy_(-1, ids, self._columns(rows, ids, hidden).to(logits.dtype))
        with torch.no_grad():
            columns = self._columns(rows, ids, hidden).to(logits.dtype)
        change = F.linear(hidden, (rows - self.weight.detach()[ids]).to(hidden.dtype)).to(logits.dtype)
        return _ReplaceColumns.apply(logits, columns, change, ids)


class _ReplaceColumns(torch.autograd.Function):
    """``logits.index_copy_(-1, ids, columns)`` whose backward does not copy the gradient [*, V].

    Autograd's own backward clones the gradient to put zeros where the columns were replaced. That took 3% of a training
    step at V 49,152 and 6% at V 128,256. Here the whole gradient goes on to the logits, also to the columns that were
    replaced. ``change``, the new columns minus the old ones, gets the same gradient and so undoes the wrong part. Its
    values are not used.
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
    return None if name is None else sets[name]


def _read(row_set: RowSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [k, d] and their token ids [k], on one device."""
    rows: torch.Tensor = row_set()
    return rows, row_set.index_on(rows.device)[0]


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


def check_head(head: nn.Module, columns: torch.Tensor, rows: torch.Tensor) -> None:
    """Refuse a head whose forward is more than the product with the table, plus a bias.

    :class:`RowHead` replaces logits by such products. A scale or a tanh in the forward would be lost. What hooks do, or
    the model around the head, happens to all logits alike.

    Parameters
    ----------
    head : nn.Module
        A module that holds the input table as its weight.
    columns : torch.Tensor
        int64 [n], the logits that are compared.
    rows : torch.Tensor
        [n, d], the rows of the table that give them.

    Raises
    ------
    InputError
        The head does more than that, or its forward was replaced on the instance.
    """
    if "forward" in vars(head) and "_old_forward" not in vars(head):
        raise InputError("the output head's forward has been replaced on the instance; attach the rows first")
    if type(head).forward is nn.Linear.forward:
        return
    bias: Any = getattr(head, "bias", None)
    wide = rows.float()
    # One small and one large hidden state: a softcap leaves small logits nearly as they are.
    hidden = torch.randn(2, rows.shape[1], generator=torch.Generator().manual_seed(0)).to(wide)
    largest = F.linear(hidden, wide).abs().amax(dim=1, keepdim=True).clamp(min=1e-6)
    hidden = (hidden / largest * torch.tensor([[1.0], [100.0]]).to(wide)).clamp(-1e4, 1e4).to(rows.dtype)
    want = F.linear(hidden, rows, None if bias is None else bias[columns]).float()
    try:
        with torch.no_grad():
            got = type(head).forward(head, hidden)[..., columns].float()
    except Exception as error:  # whatever a forward that wants other arguments raises
        raise InputError(f"output='tied' needs a head that maps hidden states alone to logits: {error}") from error
    off = (got - want).abs().amax(dim=1) / want.abs().amax(dim=1).clamp(min=1e-6)
    if not bool((off <= torch.finfo(rows.dtype).eps ** 0.5).all()):
        raise InputError(
            f"output='tied' needs a head that multiplies by the table and does nothing else, and the forward of "
            f"{type(head).__name__} does more (a scale, a tanh); use output='frozen'"
        )

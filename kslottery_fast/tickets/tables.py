"""Tables of tokens: what counts as one, and the KS counts of two."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt
from torch import Tensor, nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.ks.tables import counts_in_memory
from kslottery_fast.rows.overlay import Overlay

Table: TypeAlias = Tensor | nn.Embedding | npt.NDArray[Any]
"""A [V, d] table: tensor, Parameter, nn.Embedding or numpy array of float64, float32, float16 or bfloat16."""


def ks_statistics(before: Table, after: Table) -> Tensor:
    """Count h = d * D, the exact two-sided KS count of every row of two tables.

    Parameters
    ----------
    before, after : tensor, nn.Embedding or array [V, d]
        Float64, float32, float16 or bfloat16, mixed as you like; any strides. ``after`` is moved to the
        device of ``before``. V may be 0.

    Returns
    -------
    Tensor int64 [V]
        ``D = h / d``. 0 says that the two rows hold the same values (in whatever order).

    Raises
    ------
    InputError
        Shapes that differ or are not [V, d]; NaN, naming the table and the rows. Inf is a value like any
        other.
    TypeError
        Not a table of floats.

    Examples
    --------
    >>> import torch
    >>> before = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    >>> after = torch.tensor([[4.0, 3.0, 2.0, 1.0], [3.0, 4.0, 5.0, 6.0]])
    >>> ks_statistics(before, after)
    tensor([0, 2])
    """
    names = ("before", "after")
    return counts_in_memory(numbers_of(before, names[0]), numbers_of(after, names[1]), names)


def numbers_of(value: Any, name: str) -> Any:
    """The weight of an embedding; anything else as it is.

    Raises
    ------
    InputError : an embedding with attached rows, which its weight lacks.
    TypeError : another module.
    """
    if isinstance(value, Overlay):
        raise InputError(
            f"{name} is an embedding with attached rows, which its table lacks: call merge_rows(model) first"
        )
    if isinstance(value, nn.Module):
        weight = getattr(value, "weight", None)
        if not isinstance(value, nn.Embedding) or not isinstance(weight, Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}: expected a [V, d] table; for a model pass "
                "model.get_input_embeddings()"
            )
        return weight
    return value

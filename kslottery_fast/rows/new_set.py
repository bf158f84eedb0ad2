"""Making a set of rows: they start equal to the rows of the table that they are for."""

import torch
from torch import nn

from kslottery_fast.base.errors import InputError

from .heads import head_bias, head_rows
from .rowset import RowSet
from .tables import base_rows, check_finite, table_shape


def new_row_set(
    embedding: nn.Embedding,
    ids: torch.Tensor,
    *,
    head: nn.Module | None = None,
    output_ids: torch.Tensor | None = None,
    train_padding: bool = False,
) -> RowSet:
    """Return the rows of an embedding, and those of ``head`` if it is to get some of its own, all float32 or float64.

    Raises
    ------
    InputError
        A row of a table holds NaN or Inf, or a table is quantized in a way that nobody can read.
    """
    rows = _trainable(base_rows(embedding, ids), ids, embedding, "embedding table")
    output = None if head is None else _new_head_set(head, ids if output_ids is None else output_ids)
    padding = None if train_padding else embedding.padding_idx
    return RowSet(rows, ids.to(rows.device, copy=True), table_shape(embedding)[0], padding, output=output)


def _new_head_set(head: nn.Module, ids: torch.Tensor) -> RowSet:
    rows = _trainable(head_rows(head, ids), ids, head, "weight of the output head")
    bias = head_bias(head, ids)
    if bias is not None:
        check_finite(bias[:, None], ids, "cannot attach rows, the bias of the output head is damaged")
        bias = bias.to(rows, copy=True)
    return RowSet(rows, ids.to(rows.device, copy=True), table_shape(head)[0], None, bias=bias)


def _trainable(values: torch.Tensor, ids: torch.Tensor, module: nn.Module, what: str) -> torch.Tensor:
    if not values.is_floating_point():
        raise InputError(
            f"the {what} is quantized ({values.dtype}) and {type(module).__name__} does not dequantize it; "
            "load it in a floating-point dtype"
        )
    # Several tables may be damaged, but the message keeps the words that it had for one.
    table = "the table" if isinstance(module, nn.Embedding) else f"the {what}"
    check_finite(values, ids, f"cannot attach rows, {table} is damaged")
    return values.to(torch.promote_types(values.dtype, torch.float32), copy=True)

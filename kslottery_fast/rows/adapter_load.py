"""Reading an adapter directory for a model, and placing its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import HeadRole
from kslottery_fast.base.tokenizer import Tokenizer

from .adapter_format import StoredRows, check_fits, read_rows
from .adapter_model import base_modules
from .adapter_tokens import Growth, planned_growth, unknown_rows
from .attach import attach_rows
from .attachment import get_rows, has_rows, output_role
from .heads import head_rows, output_head
from .sets import add_rows
from .tables import check_finite, input_embedding, is_tied, table_shape
from .token_ids import check_token_ids
from .undo import ModelState


@dataclass
class Plan:
    """An adapter that fits a model. Nothing is changed yet.

    Attributes
    ----------
    folder : Path
        Where it is.
    stored : StoredRows
        What it holds.
    growth : Growth
        What model and tokenizer lack.
    ids : torch.Tensor
        int64 [k], the token ids of the input.
    output : {"frozen", "tied", "own"}
        What the head is to do.
    """

    folder: Path
    stored: StoredRows
    growth: Growth
    ids: torch.Tensor
    output: HeadRole


def planned(folder: Path, model: nn.Module, tokenizer: Tokenizer | None, *, beside_lora: bool = False) -> Plan:
    """Read an adapter directory, and check that its rows fit a model and a tokenizer.

    Raises
    ------
    InputError
        They do not, or a file is missing or damaged.
    """
    head = output_head(model)
    head_name = next((name for name, module in base_modules(model) if head is not None and module is head), None)
    stored = read_rows(folder, head_name, beside_lora=beside_lora)
    growth = planned_growth(folder, model, stored.vocab_size, stored.tokens, tokenizer)
    ids = check_fits(folder, stored, growth.after, table_shape(input_embedding(model))[1])
    check_finite(stored.values, ids, f"cannot load {folder}")
    output = _role(folder, stored, model, head)
    if output == "own" and head is not None and stored.head_values is not None:
        _check_own(folder, stored, head, stored.head_values, growth)
    if growth.after > growth.before and has_rows(model):
        raise InputError(
            f"{folder} needs a table with {growth.after} rows, and the table of a model with attached rows cannot "
            "grow; detach_rows or merge_rows first"
        )
    return Plan(folder, stored, growth, ids, output)


@contextmanager
def grown(model: nn.Module, plan: Plan, tokenizer: Tokenizer | None) -> Iterator[None]:
    """Grow a model before the block and the tokenizer after it. If the block fails, both are as they were."""
    before = ModelState(model) if plan.growth.after > plan.growth.before else None
    try:
        plan.growth.grow(model)
        yield
    except BaseException:
        if before is not None:
            before.restore()
        raise
    plan.growth.teach(tokenizer)
    head_keeps_rows = output_head(model) is not None and (plan.output != "tied" or not is_tied(model))
    known = plan.stored.head_ids if plan.output == "own" else []
    if warning := unknown_rows(plan.growth, plan.stored.ids, (known or []) if head_keeps_rows else None):
        warn_caller(warning)


def attach_stored(model: nn.Module, plan: Plan, name: str, *, freeze: bool, train_padding: bool | None = None) -> None:
    """Attach the rows of an adapter, or add them to those that are attached."""
    stored, output = plan.stored, plan.output
    head_ids = stored.head_ids if output == "own" else None
    if not has_rows(model):
        attach_rows(
            model,
            plan.ids,
            output=output,
            output_ids=head_ids,
            name=name,
            freeze=freeze,
            train_padding=train_padding,
        )
    elif output_role(model) != output:
        raise InputError(
            f"{plan.folder} has rows with output={output!r}, but the attached rows have output={output_role(model)!r}: "
            "the head cannot play both roles; detach_rows first"
        )
    else:
        add_rows(model, name, plan.ids, output_ids=head_ids, train_padding=train_padding)
    row_set = get_rows(model).row_sets[name]
    with torch.no_grad():
        row_set.rows.copy_(stored.values)
        if row_set.output is not None and stored.head_values is not None:
            row_set.output.rows.copy_(stored.head_values)
            if row_set.output.bias is not None and stored.head_bias is not None:
                row_set.output.bias.copy_(stored.head_bias)


def _role(folder: Path, stored: StoredRows, model: nn.Module, head: nn.Module | None) -> HeadRole:
    """What the head is to do about the rows of an adapter."""
    tied, ids, values = is_tied(model), stored.head_ids, stored.head_values
    if stored.role == "own":
        return "own"
    if head is not None and ids is not None and ids != stored.ids:
        if values is None:
            raise InputError(f"{folder} names rows of the head and does not hold them; save the adapter again")
        if _equal_base(folder, head, ids, values):
            return "frozen"  # pinned to the base
        if stored.role is None:
            return "own"  # PEFT trained them
        raise InputError(f"{folder} has other rows for the head than the base model; load it with PEFT")
    if ids is not None and values is not None and stored.role is None and not tied:
        return "own"  # one list for both modules, which PEFT trained apart
    output = stored.role or ("tied" if tied else "frozen")
    if values is not None and not torch.equal(values, stored.values):
        raise InputError(f"{folder} holds different rows for the head; load it with PEFT")
    if (output == "tied" or ids is not None or values is not None) and not tied:
        raise InputError(f"{folder} changes the head too, but this model is not tied; load it onto the tied base")
    return "tied" if output == "tied" else "frozen"


def _equal_base(folder: Path, head: nn.Module, head_ids: list[int], values: torch.Tensor) -> bool:
    ids = check_token_ids(head_ids, table_shape(head)[0], f"{folder}: indices of the head")
    base = head_rows(head, ids)
    return torch.equal(values.to(base), base)


def _check_own(folder: Path, stored: StoredRows, head: nn.Module, values: torch.Tensor, growth: Growth) -> None:
    """Refuse rows and bias entries that do not fit the head."""
    V, d = table_shape(head)
    V = growth.after if growth.before == V else V
    ids = check_token_ids(stored.head_ids or [], V, f"{folder}: indices of the head")
    if values.shape != (len(ids), d):
        raise InputError(f"{folder} has rows {list(values.shape)} for the head, but the model needs {[len(ids), d]}")
    check_finite(values, ids, f"cannot load {folder}, rows of the head")
    if stored.head_bias is None:
        return
    if getattr(head, "bias", None) is None or stored.head_bias.shape != (len(ids),):
        raise InputError(f"{folder} has bias entries of a head, and the head of this model has no bias for them")
    check_finite(stored.head_bias[:, None], ids, f"cannot load {folder}, bias entries of the head")

"""The output heads of a model: finding them, reading their rows, and checking that they only multiply."""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import HeadRole

from .owner import table_owner
from .tables import (
    TABLE_DTYPES,
    base_rows,
    check_readable,
    embedding_table,
    is_quantized,
    offloaded,
    table_shape,
    table_users,
)

_PROBED = 64  # hidden states in one call of a quantized head
_ROUNDED = 0.05


def output_head(model: nn.Module) -> nn.Module | None:
    """Return the module that maps hidden states to logits, None if the model has none."""
    getter: Any = getattr(table_owner(model), "get_output_embeddings", None)
    try:
        head = getter() if getter is not None else None
    except NotImplementedError:
        head = None
    if isinstance(head, nn.Module) and not isinstance(head, nn.Embedding):
        return head
    tied = table_users(model, embedding_table(model))[1]
    return tied[0] if tied else None


def own_heads(model: nn.Module) -> list[nn.Module]:
    """Return the output heads that can get rows of their own. They share one weight.

    Raises
    ------
    InputError
        The model has no head, or one that is wrapped, sharded or has no values, or that does more than multiply.
    """
    head = output_head(model)
    if head is None:
        raise InputError(
            f"output='own' needs a model with an output head, and {type(model).__name__} has none; load it as a "
            "language model (AutoModelForCausalLM and the like), or use output='frozen'"
        )
    _refuse_wrapped(model, head)
    weight: Any = getattr(head, "weight", None)
    if not torch.is_tensor(weight):
        raise InputError(f"output='own' needs a head with one weight, and {type(head).__name__} has none")
    check_readable(head, "output head")
    heads = table_users(model, weight)[1] or [head]
    for each in heads:
        columns = _some_columns(table_shape(each)[0])
        check_head(each, columns, head_rows(each, columns), "own")
    return heads


def tied_heads(model: nn.Module, embedding: nn.Embedding, token_ids: torch.Tensor) -> list[nn.Module]:
    """Return the output heads that share the input table, so that they can follow its rows.

    Raises
    ------
    InputError
        There is none, or one that is wrapped by PEFT or does more than multiply.
    """
    heads = table_users(model, embedding.weight)[1]
    if not heads:
        why = (
            "the table is offloaded, and its users cannot be told; attach the rows before accelerate offloads the model"
            if embedding.weight.is_meta
            else "this model is not tied"
        )
        raise InputError(f"output='tied' needs a head that shares the input table; {why}")
    columns = torch.cat([token_ids, _some_columns(table_shape(embedding)[0])]).unique()
    rows = base_rows(embedding, columns)
    for head in heads:
        _refuse_wrapped(model, head)
        check_head(head, columns, rows, "tied")
    return heads


def _refuse_wrapped(model: nn.Module, head: nn.Module) -> None:
    """Refuse a head that is a layer of PEFT or is inside one. PEFT would merge it into the table that rows replace."""
    for module in model.modules():
        inner = [module._modules.get(part) for part in ("base_layer", "original_module")]
        around = any(each is not None and (module is head or each is head) for each in inner)
        if around or (module is head and type(head).__module__.startswith("peft.")):
            raise InputError(
                f"the output head is wrapped by PEFT ({type(module).__name__}), which trains it itself; take its name "
                "(lm_head, ...) out of target_modules, modules_to_save and trainable_token_indices, or use "
                "output='frozen'"
            )


def _some_columns(vocab_size: int) -> torch.Tensor:
    """Which logits to look at to learn what a head does. Rows of tickets may all be zero, which tells nothing."""
    return torch.arange(0, vocab_size, max(1, vocab_size // 16))


def head_rows(head: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the rows [k, d] of a head's own table, wherever it is.

    A quantized head does not tell its rows, so it is asked for the logits of unit vectors.
    """
    known: Any = head
    if is_quantized(head) and not known.weight.is_meta:
        return _rows_from_logits(head, token_ids)
    return base_rows(head, token_ids)


def head_bias(head: nn.Module, token_ids: torch.Tensor) -> torch.Tensor | None:
    """Return the bias entries [k] of a head, None if it has no bias."""
    bias: Any = getattr(head, "bias", None)
    if bias is None:
        return None
    if bias.is_meta and (kept := offloaded(head, "bias")) is not None:
        values, device = kept
        return values[token_ids.to(values.device)].to(device)
    found: torch.Tensor = bias.detach()[token_ids.to(bias.device)]
    return found


@torch.no_grad()
def _rows_from_logits(head: Any, token_ids: torch.Tensor) -> torch.Tensor:
    dimension, device = table_shape(head)[1], head.weight.device
    ids, bias = token_ids.to(device), head_bias(head, token_ids)
    forward = getattr(type(head), "overlaid", type(head)).forward  # through the class, so that no hook fires
    columns = []
    for units in torch.eye(dimension, dtype=_computing_dtype(head), device=device).split(_PROBED):
        logits = forward(head, units)[:, ids].float()
        columns.append(logits if bias is None else logits - bias.to(logits))
    return torch.cat(columns).T.contiguous()


def _computing_dtype(head: Any) -> torch.dtype:
    """The dtype of the hidden states that a quantized head takes."""
    for each in (head.weight, getattr(head, "bias", None)):
        if each is not None and each.dtype in TABLE_DTYPES:
            return cast(torch.dtype, each.dtype)
    return torch.float32


def check_head(head: nn.Module, columns: torch.Tensor, rows: torch.Tensor, role: HeadRole) -> None:
    """Refuse a head whose forward is more than the product with its table, plus a bias.

    :class:`kslottery_fast.rows.overlay.RowHead` replaces logits by such products. A scale or a tanh in the forward
    would be lost. What hooks do, or the model around the head, happens to all logits alike.

    Parameters
    ----------
    head : nn.Module
        An output head.
    columns : torch.Tensor
        int64 [n], the logits that are compared.
    rows : torch.Tensor
        [n, d], the rows of its table that give them.
    role : {"tied", "own"}
        What the head is to do, for the message.

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
    want = F.linear(hidden, rows, None if bias is None else bias[columns].to(rows.dtype)).float()
    try:
        with torch.no_grad():
            got = type(head).forward(head, hidden)[..., columns].float()
    except Exception as error:  # whatever a forward that wants other arguments raises
        raise InputError(f"output={role!r} needs a head that maps hidden states alone to logits: {error}") from error
    off = (got - want).abs().amax(dim=1) / want.abs().amax(dim=1).clamp(min=1e-6)
    # Some quantized heads round the hidden states too, to 8 bits.
    allowed = _ROUNDED if is_quantized(head) else torch.finfo(rows.dtype).eps ** 0.5
    if not bool((off <= allowed).all()):
        raise InputError(
            f"output={role!r} needs a head that multiplies by the table and does nothing else, and the forward of "
            f"{type(head).__name__} does more (a scale, a tanh); use output='frozen'"
        )

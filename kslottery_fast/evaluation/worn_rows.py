"""A model that reads other rows for a while, everywhere or at some positions."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import M, check_choice, check_integer, check_model, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import SharedRole
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows
from kslottery_fast.rows.tables import input_embedding, table_shape
from kslottery_fast.rows.token_ids import TokenIds, check_token_ids

from .checks import check_bootstrap, check_progress


@contextlib.contextmanager
def wearing(
    model: M, token_ids: TokenIds, rows: torch.Tensor, *, output: SharedRole = "auto", tokenizer: Any = None
) -> Iterator[M]:
    """Give a model other rows inside the block. After the block it is as it was.

    Parameters
    ----------
    model : torch.nn.Module
        A model without attached rows.
    token_ids : TokenIds
        Tickets, k token ids, the path of a ticket file, or token strings. An empty tensor leaves the model as it is.
    rows : tensor [k, d]
        What the model reads in place of its own rows.
    output : {"auto", "frozen", "tied"}
        Role of a tied table, see :func:`kslottery_fast.attach_rows`.
    tokenizer : transformers tokenizer, optional
        Looks up token strings.

    Raises
    ------
    InputError
        The rows do not fit the token ids and the model, or :func:`kslottery_fast.attach_rows` refuses an argument.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> model = nn.Embedding(10, 2)
    >>> with wearing(model, [7], torch.tensor([[1.0, 2.0]])) as worn:
    ...     worn(torch.tensor([7])).tolist()
    [[1.0, 2.0]]
    >>> type(model)
    <class 'torch.nn.modules.sparse.Embedding'>
    """
    check_choice(output, ("auto", "frozen", "tied"), "output")
    ids, values = check_rows(model, token_ids, rows, tokenizer)
    if len(ids) == 0:
        yield model
        return
    attach_rows(model, ids, output=output, train_padding=False)
    try:
        with torch.no_grad():
            get_rows(model).rows.copy_(values)
        yield model
    finally:
        detach_rows(model)


@contextlib.contextmanager
def switched(model: nn.Module, on: torch.Tensor) -> Iterator[None]:
    """Let a model's attached rows act only at some positions, inside the block.

    Parameters
    ----------
    model : torch.nn.Module
        A model with attached rows.
    on : bool tensor [B, T]
        Where the rows act. At all other positions the model reads its own rows.

    Raises
    ------
    InputError
        The model has no attached rows.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> model = nn.Embedding(10, 2)
    >>> with wearing(model, [7], torch.tensor([[1.0, 2.0]])), switched(model, torch.tensor([[True, False]])):
    ...     first, second = model(torch.tensor([[7, 7]]))[0]
    >>> first.tolist(), torch.equal(second, model.weight[7])
    ([1.0, 2.0], True)
    """
    if not torch.is_tensor(on) or on.dtype != torch.bool:
        raise TypeError(f"on is {shown(on)}: expected a bool tensor [B, T]")
    embedding = get_rows(model)
    sets = embedding.row_sets

    def choose(module: Any, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        # Ask the same module without its rows, so that a scale and the like apply to both. Ask the instance, not the
        # class: accelerate's hook has put an offloaded table away again, and brings it back for this call.
        in_use, sets.active = sets.active, None
        try:
            original = module.forward(*arguments)
        finally:
            sets.active = in_use
        return torch.where(on.to(output.device)[..., None], output, original)

    hook = embedding.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def check_rows(
    model: nn.Module, token_ids: TokenIds, rows: Any, tokenizer: Tokenizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [k] and rows [k, d] that fit each other and the model. k may be 0."""
    vocab_size, dimension = table_shape(input_embedding(check_model(model)))
    nothing = torch.is_tensor(token_ids) and token_ids.numel() == 0
    ids = torch.empty(0, dtype=torch.int64) if nothing else check_token_ids(token_ids, vocab_size, tokenizer=tokenizer)
    if not torch.is_tensor(rows):
        raise TypeError(f"rows is {shown(rows)}: expected a tensor [k, d], one row for each token id")
    if rows.shape != (len(ids), dimension):
        raise InputError(
            f"rows has the shape {list(rows.shape)}: expected {[len(ids), dimension]}, one row of the model's "
            "dimension for each of token_ids"
        )
    return ids, rows


def check_measuring(output: Any, batch_size: Any, n_bootstrap: Any, seed: Any, progress: Any) -> None:
    """Refuse options of a measurement that have a wrong type or are out of range."""
    check_choice(output, ("auto", "frozen", "tied"), "output")
    check_integer(batch_size, "batch_size", 1)
    check_bootstrap(n_bootstrap, seed)
    check_progress(progress)

"""Training single rows of an embedding table: attaching rows to a model, detaching and merging them.

Rows are an overlay. The base table stays frozen and untouched, k trained rows are a small float32 parameter, and a slot
map says which token reads which row. Nothing of size [V, d] is ever made: no copy of the table, no gradient and no
optimizer state. :func:`merge_rows` writes the rows into the table to make an ordinary model again.
"""

from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import M, check_choice, check_flag, check_model
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import OutputRole
from kslottery_fast.base.tokenizer import Tokenizer

from .attachment import (
    all_attachments,
    attach,
    attached_model,
    attachment,
    detach,
    get_rows,
    guard,
    has_rows,
    output_role,
)
from .new_token_marks import new_tokens
from .overlay import RowEmbedding, RowHead, RowOutput, check_head, overlay
from .rowset import RowSets, check_name, new_row_set
from .tables import (
    active_token_ids,
    base_rows,
    check_finite,
    check_table,
    check_writable,
    embedding_table,
    input_embedding,
    input_modules,
    is_quantized,
    is_tied,
    place_rows,
    split_roles,
    table_copies,
    table_shape,
    table_users,
    write_rows,
)
from .token_ids import TokenIds, check_token_ids

__all__ = [
    "RowEmbedding",
    "active_token_ids",
    "attach_rows",
    "attached_model",
    "check_output",
    "detach_rows",
    "embedding_table",
    "get_rows",
    "has_rows",
    "is_tied",
    "merge_rows",
    "output_role",
    "untie_output",
]


def attach_rows(
    model: M,
    token_ids: TokenIds,
    *,
    output: OutputRole = "auto",
    name: str = "default",
    freeze: bool = True,
    tokenizer: Tokenizer | None = None,
) -> M:
    """Freeze a model and make single rows of its input embedding trainable.

    Parameters
    ----------
    model : nn.Module
        A transformers model, decoder-only or encoder-decoder, or an ``nn.Embedding``. It is changed in place. Its table
        may be quantized, or offloaded by accelerate, since it is only read.
    token_ids : TokenIds
        k distinct token ids, Tickets, or the path of a ticket file. With a ``tokenizer`` also strings, each of which is
        one token. k may be in the thousands, for example for the active vocabulary of a corpus.
    output : {"auto", "frozen", "tied"}
        What the output head of a tied model does. With "frozen" it keeps the original rows, and only the input role
        trains. With "tied" its k logit columns follow the rows. "auto" is "frozen": through a tied head every row gets
        a tiny gradient in every step, which Adam turns into full-size updates.
    name : str
        The name of this first set of rows, without dots. :func:`kslottery_fast.rows.add_rows` adds other sets.
    freeze : bool
        False leaves the other parameters as they are, for example LoRA weights that train along with the rows. Attach
        the rows after ``get_peft_model``, which freezes all that it finds, rows too.
    tokenizer : transformers tokenizer, optional
        Looks up strings among ``token_ids``. Tickets that keep the texts of their tokens are checked against it.

    Returns
    -------
    nn.Module
        The model. With ``freeze`` its only trainable parameter is ``get_rows(model).rows``, [k, d] float32, which
        starts equal to the rows of the table.

    Raises
    ------
    InputError
        The token ids are bad. Rows are attached already. The model has no input embedding. The table is sharded or has
        no values. A row holds NaN. ``output`` is unknown. ``output="tied"`` is refused for a model that is not tied,
        and for a head that does more than multiply by the table. The model is then as it was.
    TypeError
        An argument has the wrong type. The model is then as it was.

    Warns
    -----
    RuntimeWarning
        Once, in the first training forward that reads rows whose ``requires_grad`` is False.

    Examples
    --------
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3])
    >>> [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    [('row_sets.default.rows', [2, 4])]
    >>> model(torch.tensor([1, 7])).shape
    torch.Size([2, 4])
    """
    check_output(output)
    check_flag(freeze, "freeze")
    if has_rows(model):
        raise InputError("rows are attached to this model already; call merge_rows or detach_rows first")
    check_name(name)
    embedding = input_embedding(model)
    check_table(embedding)
    ids = check_token_ids(token_ids, table_shape(embedding)[0], tokenizer=tokenizer, new_tokens=new_tokens(model))
    modules = input_modules(model, ids)
    heads = _heads(model, embedding, ids) if output == "tied" else []
    for module in modules:
        check_table(module)
        if "forward" in vars(module) and "_old_forward" not in vars(module):
            raise InputError("the embedding's forward has been replaced on the instance; attach the rows first")
    sets = RowSets(name, new_row_set(embedding, ids))

    attach(model, modules, role="tied" if output == "tied" else "frozen", freeze=freeze)
    try:
        for module in modules:
            overlay(module, RowOutput if is_quantized(module) else RowEmbedding, sets)
        for head in heads:
            overlay(head, RowHead, sets)
        guard(model)
    except BaseException:
        detach(model)
        raise
    return model


def detach_rows(model: M) -> M:
    """Take the rows off, which gives back the original model bit for bit.

    What :func:`attach_rows` froze trains again, unless the model got other parameters since. In that case an adapter
    library such as PEFT wants the rest of it frozen, and no flag is touched.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows, or a module that holds several of them: the rows of all are taken off.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    InputError
        No rows are attached.

    Examples
    --------
    >>> model = detach_rows(attach_rows(torch.nn.Embedding(10, 4), [7, 3]))
    >>> has_rows(model), model.weight.requires_grad
    (False, True)
    """
    owners = all_attachments(check_model(model))
    for owner, _ in owners:
        # A module that holds several models is not a wrapper that an adapter library put around one of them.
        detach(model if len(owners) == 1 else owner)
    return model


def merge_rows(model: M) -> M:
    """Write the rows into the table: an ordinary model with the same logits, ready for ``save_pretrained``.

    A tied model with a frozen head cannot keep one table for two roles: its head gets a copy of the old table, as after
    :func:`untie_output`. What :func:`attach_rows` froze trains again, as after :func:`detach_rows`.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    InputError
        No rows are attached or in use, or several sets are attached. A row holds NaN or Inf in the dtype of the table.
        The table is quantized, offloaded or sharded, or the architecture cannot be untied. The model is then as it was.

    Examples
    --------
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3])
    >>> _ = get_rows(model).rows.data.fill_(1.0)
    >>> merge_rows(model).weight[7]
    tensor([1., 1., 1., 1.], grad_fn=<SelectBackward0>)
    """
    owner, kept = attachment(check_model(model))
    embeddings = [module for module in owner.modules() if isinstance(module, RowEmbedding)]
    sets, ids = embeddings[0].row_sets, embeddings[0].token_ids
    others = [repr(name) for name in sets if name != sets.active]
    if others:
        raise InputError(
            f"merging would lose the sets {', '.join(others)}; save them with save_adapter if they are needed, "
            "then drop them with remove_rows"
        )
    for module in embeddings:
        check_writable(module, "merge into")
    with torch.no_grad():
        values = embeddings[0].rows.to(embeddings[0].weight.dtype)
        check_finite(values, ids, f"cannot merge into a {values.dtype} table")
        # All memory is asked for before the rows are taken off: if there is not enough, they are still attached.
        copies = table_copies(owner) if kept.output == "frozen" else []
        placed = place_rows(embeddings, ids, values)
        detach(model)
        split_roles(owner, copies)
        write_rows(placed)
    return model


def untie_output(model: M) -> M:
    """Give the output head its own copy of the table. The logits stay as they are, bit for bit.

    In a model whose encoder and decoder share the table too, those get copies as well: ``tie_word_embeddings`` is one
    flag for all of them, and ``from_pretrained`` would otherwise find some of the tables missing.

    Parameters
    ----------
    model : nn.Module
        A transformers model. One that is not tied is left alone.

    Returns
    -------
    nn.Module
        The model, with ``config.tie_word_embeddings = False``.

    Raises
    ------
    InputError
        Rows are attached, or the architecture scales its logits by the same flag, as UMT5 does.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=10, tie_word_embeddings=True, **sizes))
    >>> is_tied(model), is_tied(untie_output(model))
    (True, False)
    """
    if has_rows(model):
        raise InputError("untie_output needs a model without attached rows; call it before attach_rows")
    return split_roles(model, table_copies(model))


def check_output(output: Any) -> None:
    """Refuse what is not one of the choices of :data:`~kslottery_fast.base.options.OutputRole`."""
    check_choice(output, ("auto", "frozen", "tied"), "output")


def _heads(model: nn.Module, embedding: nn.Embedding, ids: torch.Tensor) -> list[nn.Module]:
    """The output heads that are to follow the rows."""
    heads = table_users(model, embedding.weight)[1]
    if not heads:
        why = (
            "the table is offloaded, and its users cannot be told; attach the rows before accelerate offloads the model"
            if embedding.weight.is_meta
            else "this model is not tied"
        )
        raise InputError(f"output='tied' needs a head that shares the input table; {why}")
    V = table_shape(embedding)[0]
    # The rows may all be zero, which tells nothing of a head; so some others are looked at too.
    columns = torch.cat([ids, torch.arange(0, V, max(1, V // 16))]).unique()
    rows = base_rows(embedding, columns)
    for head in heads:
        check_head(head, columns, rows)
    return heads

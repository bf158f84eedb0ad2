"""Training single rows of an embedding table: attaching rows to a model, detaching and merging them.

Rows are an overlay. The base table stays frozen and untouched, k trained rows are a small float32 parameter, and a slot
map says which token reads which row. Nothing of size [V, d] is ever made: no copy of the table, no gradient and no
optimizer state. :func:`merge_rows` writes the rows into the table to make an ordinary model again.
"""

from typing import Any

from torch import nn

from kslottery_fast.base.arguments import M, check_flag
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import OutputRole
from kslottery_fast.base.tokenizer import Tokenizer

from .attachment import (
    attach,
    attached_model,
    detach,
    get_output_rows,
    get_rows,
    guard,
    has_rows,
    output_role,
)
from .heads import output_head
from .merge import detach_rows, merge_rows
from .new_set import new_row_set
from .new_token_marks import new_tokens
from .overlay import RowEmbedding, RowHead, RowOutput, overlay
from .padding import check_train_padding, warn_padding
from .roles import Head, check_output, choose_head
from .rowset import RowSets, check_name
from .switch import AdapterSwitch
from .tables import (
    active_token_ids,
    check_table,
    embedding_table,
    input_embedding,
    input_modules,
    is_quantized,
    is_tied,
    table_shape,
)
from .token_ids import TokenIds, check_token_ids
from .untie import untie_output

__all__ = [
    "RowEmbedding",
    "active_token_ids",
    "attach_rows",
    "attached_model",
    "check_output",
    "detach_rows",
    "embedding_table",
    "get_output_rows",
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
    output_ids: TokenIds | None = None,
    name: str = "default",
    freeze: bool = True,
    train_padding: bool | None = None,
    tokenizer: Tokenizer | None = None,
) -> M:
    """Freeze a model and make single rows of its input embedding trainable, and with ``output="own"`` of its head.

    Parameters
    ----------
    model : nn.Module
        A transformers model, decoder-only or encoder-decoder, or an ``nn.Embedding``. It is changed in place. Its table
        may be quantized, or offloaded by accelerate, since it is only read.
    token_ids : TokenIds
        k distinct token ids, Tickets, or the path of a ticket file. With a ``tokenizer`` also strings, each of which is
        one token. k may be in the thousands, for example for the active vocabulary of a corpus.
    output : {"auto", "frozen", "tied", "own"}
        What the output head does. With "frozen" it keeps its rows, and only the input role trains. With "tied" the head
        of a tied model follows: its k logit columns come from the same rows. With "own" the head trains rows of its
        own, and the bias entries of these tokens if it has a bias, in tied and untied models. "auto" is "frozen",
        because through a tied head every row gets a tiny gradient in every step, which Adam turns into full-size
        updates. Tokens that :func:`kslottery_fast.add_tokens` added are the exception, because their rows are not
        trained yet: with one of them among ``token_ids``, "auto" is "tied" for a tied model, and for any other "own"
        with the added tokens as ``output_ids``. :func:`kslottery_fast.rows.output_role` tells what was chosen.
    output_ids : TokenIds, optional
        The tokens of the head's own rows, where they differ from ``token_ids``. Needs ``output="own"``.
    name : str
        The name of this first set of rows, without dots. :func:`kslottery_fast.rows.add_rows` adds other sets.
    freeze : bool
        False leaves the other parameters as they are, for example LoRA weights that train along with the rows. Attach
        the rows after ``get_peft_model``, which freezes all that it finds, rows too.
    train_padding : bool, optional
        Whether the input row of ``padding_idx`` trains. In ``nn.Embedding`` it gets no gradient, and by default it
        gets none here, with a warning. False does the same without the warning. True lets it train like any other row,
        for models whose padding token has another meaning as well, such as the end of a text. Which positions are
        padding is then up to the labels (-100) and the attention mask.
    tokenizer : transformers tokenizer, optional
        Looks up strings among ``token_ids``. Tickets that keep the texts of their tokens are checked against it.

    Returns
    -------
    nn.Module
        The model. With ``freeze`` its only trainable parameters are ``get_rows(model).rows``, [k, d] float32, and with
        ``output="own"`` ``get_output_rows(model).rows`` and ``.row_bias``. They start equal to the rows of the tables.

    Raises
    ------
    InputError
        The token ids are bad. Rows are attached already. The model has no input embedding. A table is sharded or has
        no values. A row holds NaN. ``output`` is unknown. ``output="tied"`` is refused for a model that is not tied,
        ``output="own"`` for a model without a head, and both for a head that does more than multiply by its table.
        ``output_ids`` was given without ``output="own"``, or has ids that the head does not have. The model is then as
        it was.
    TypeError
        An argument has the wrong type. The model is then as it was.

    Warns
    -----
    RuntimeWarning
        The row of ``padding_idx`` will not train. Or ``output="auto"`` keeps the head as it is, and ``token_ids`` has
        tokens that are new, as the tokenizer or the values of their rows tell: the model will not learn to predict
        them. Once, in the first training forward that reads rows whose ``requires_grad`` is False.

    Examples
    --------
    >>> import torch
    >>> model = attach_rows(torch.nn.Embedding(10, 4), [7, 3])
    >>> [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    [('row_sets.default.rows', [2, 4])]
    >>> model(torch.tensor([1, 7])).shape
    torch.Size([2, 4])
    """
    check_output(output)
    check_flag(freeze, "freeze")
    check_train_padding(train_padding)
    if has_rows(model):
        raise InputError("rows are attached to this model already; call merge_rows or detach_rows first")
    check_name(name)
    embedding = input_embedding(model)
    check_table(embedding)
    ids = check_token_ids(token_ids, table_shape(embedding)[0], tokenizer=tokenizer, new_tokens=new_tokens(model))
    modules = input_modules(model, ids)
    head = choose_head(model, embedding, ids, output, output_ids, tokenizer)
    for module in modules:
        check_table(module)
        if "forward" in vars(module) and "_old_forward" not in vars(module):
            raise InputError("the embedding's forward has been replaced on the instance; attach the rows first")
    row_set = new_row_set(
        embedding,
        ids,
        head=head.modules[0] if head.role == "own" else None,
        output_ids=head.token_ids,
        train_padding=train_padding is True,
    )
    sets = RowSets(name, row_set, head.role if output_head(model) is not None else None)
    warn_padding(embedding, ids, head.role, train_padding, tokenizer)

    attach(model, _tables(modules, head), role=head.role, freeze=freeze)
    try:
        for module in modules:
            overlay(module, RowOutput if is_quantized(module) else RowEmbedding, sets)
        for each in head.modules:
            overlay(each, RowHead, sets)
        guard(model)
        sets.switch = AdapterSwitch(model, head_reads=head.role != "frozen")
    except BaseException:
        detach(model)
        raise
    return model


def _tables(embeddings: list[nn.Embedding], head: Head) -> list[nn.Parameter]:
    """The parameters that rows stand in for, so that they may not train themselves."""
    found: list[Any] = [module.weight for module in embeddings]
    for module in head.modules if head.role == "own" else ():
        found += [module.weight, *([] if (bias := getattr(module, "bias", None)) is None else [bias])]
    return found

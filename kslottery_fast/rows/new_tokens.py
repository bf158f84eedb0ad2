"""Adding tokens to a model and its tokenizer, with rows that start from something better than random numbers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_flag, check_integer, shown
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.dtensors import is_sharded
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.tokenizer import Tokenizer

from .attachment import has_rows
from .heads import output_head
from .new_token_marks import mark_new_tokens
from .new_token_rows import Sources, TokenInit, add_noise, head_sources, initial_rows, mean_row, sources_of
from .new_token_strings import NewTokens, check_new_tokens
from .owner import table_owner
from .tables import TABLE_DTYPES, input_embedding, input_modules
from .undo import ModelState


def add_tokens(
    model: nn.Module,
    tokenizer: Tokenizer,
    tokens: NewTokens,
    *,
    init: TokenInit = "mean",
    output_init: TokenInit | None = None,
    special: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    pad_to_multiple_of: int | None = None,
) -> list[int]:
    """Add tokens to a tokenizer, and to a model the rows that they read, and the rows that predict them.

    The tables grow through ``resize_token_embeddings`` of transformers, unless they are tall enough already. Give the
    returned ids to :func:`kslottery_fast.attach_rows` to train the new rows alone. With ``output="auto"`` they train in
    the output head too, so that the model learns to say the tokens.

    Parameters
    ----------
    model : nn.Module
        A transformers model, or a module around one, such as a SentenceTransformer. It is changed in place.
    tokenizer : transformers tokenizer
        It is changed in place.
    tokens : str, tokenizers.AddedToken, or a sequence of them
        The new tokens. An AddedToken says how the token is found in a text: ``AddedToken("zorb", single_word=True)``
        is not found inside of "zorbing". A string is found everywhere.
    init : "mean", "pieces", int, Tensor or mapping
        What the new rows start from. "mean" is the mean row of the tokens that the tokenizer had. "pieces" is the mean
        of the rows that the string was read as before. An integer is the row of that token. A tensor [k, d] holds the
        rows of the input table; those of an untied head then start from the mean. A mapping gives each token a text,
        such as a description, whose pieces are averaged, or an integer, or a tensor [d].
    output_init : "mean", "pieces", int, Tensor, mapping or None
        The same for the rows of an untied output head. With None it is ``init``.
    special : bool
        True adds special tokens, which ``decode(..., skip_special_tokens=True)`` leaves out.
    noise : float
        Normal noise on each new row, as a multiple of the standard deviation of the table's values about its mean row.
    seed : int
        Of the noise.
    pad_to_multiple_of : int, optional
        Heights of tables are rounded up to a multiple of it. Rows that no token has start from the mean.

    Returns
    -------
    list of int
        The ids of the new tokens, in the given order.

    Raises
    ------
    InputError
        A token exists already, is given twice, or would not be read as one token. Rows are attached. A table is
        quantized, offloaded or sharded, or could not grow. An option is bad. Model and tokenizer are then as they were.
    TypeError
        An argument has the wrong type. Model and tokenizer are then as they were.

    Warns
    -----
    RuntimeWarning
        The model is a CLIP whose config has the wrong end token, so that it would pool texts at a new token.

    Notes
    -----
    The ids are remembered on the model until it is saved: ``attach_rows(model, "added")`` means them.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> add_tokens(model, tokenizer, ["<person>", "<place>"], init={"<person>": "abc", "<place>": 5})
    [28, 29]
    >>> model.get_input_embeddings().weight.shape[0]
    30
    """
    check_flag(special, "special")
    _check_noise(noise)
    check_integer(seed, "seed")
    if pad_to_multiple_of is not None:
        check_integer(pad_to_multiple_of, "pad_to_multiple_of", 1)
    tables = _tables_of(model)
    given, ids = check_new_tokens(tokenizer, tokens, special=special)
    texts = [str(token) for token in given]
    starts = _starts(tables, _sources(tables, texts, tokenizer, init, output_init), len(tokenizer), noise, seed)

    before = ModelState(model)
    try:
        grown = _grow(model, tables, max(ids) + 1, pad_to_multiple_of)
        writes = [starts[role].placed(table, ids) for role, table in grown.all()]
        tokenizer.add_tokens(given, special_tokens=special)  # type: ignore[attr-defined]
    except BaseException as error:
        before.restore()
        if isinstance(error, InputError) or not isinstance(error, Exception):
            raise
        raise InputError(
            f"the tables of model, {shown(model)}, could not grow, and nothing was changed: {error}"
        ) from error
    with torch.no_grad():
        for table, places, values in writes:
            table.index_copy_(0, places, values)
    mark_new_tokens(grown.modules, ids)
    _warn_of_pooling(tables.owner, tokenizer)
    return ids


@dataclass
class _Tables:
    """The tables of a model that have a row for each token."""

    owner: Any  # the model that names them
    modules: list[nn.Embedding]  # that read the input table, or copies of it
    head: torch.Tensor | None  # of an output head that is not tied
    bias: torch.Tensor | None  # of an output head

    @property
    def input(self) -> torch.Tensor:
        return self.modules[0].weight

    def all(self) -> list[tuple[str, torch.Tensor]]:
        """Every table once, with its role."""
        copies = {id(module.weight): module.weight for module in self.modules}
        others = {"head": self.head, "bias": self.bias}
        return [
            *(("input", table) for table in copies.values()),
            *((role, table) for role, table in others.items() if table is not None),
        ]

    def heights(self) -> list[int]:
        return [len(table) for _, table in self.all()]


def _tables_of(model: nn.Module) -> _Tables:
    embedding = input_embedding(model)
    if has_rows(model):
        raise InputError(
            "model has attached rows: add the tokens before attach_rows, or call merge_rows or detach_rows first"
        )
    owner: Any = table_owner(model)
    head = output_head(model)
    weight: Any = getattr(head, "weight", None)
    _check_plain(embedding.weight, "input table")
    if weight is not None:
        _check_plain(weight, "output head")
    some = torch.arange(min(16, len(embedding.weight)))  # enough to recognize copies of the table
    modules = [embedding, *(module for module in input_modules(model, some) if module is not embedding)]
    tied = weight is None or any(weight is module.weight for module in modules)
    return _Tables(owner, modules, None if tied else weight, getattr(head, "bias", None))


def _check_plain(weight: torch.Tensor, what: str) -> None:
    remedy = {
        "sharded": "add the tokens before the model is sharded",
        "offloaded": "load the model with its tables in memory",
        "quantized": "add the tokens to the model before it is quantized, save it, and quantize the saved model",
    }
    quantized = weight.dtype not in TABLE_DTYPES or type(weight.data) is not torch.Tensor
    kinds = {"sharded": is_sharded(weight), "offloaded": weight.is_meta, "quantized": quantized}
    for kind, found in kinds.items():
        if found:
            raise InputError(f"the {what} of model is {kind}, so it cannot grow; {remedy[kind]}")


def _warn_of_pooling(owner: Any, tokenizer: Any) -> None:
    """Warn of a CLIP whose config keeps the wrong end token of its first checkpoints."""
    end = getattr(tokenizer, "eos_token_id", None)
    if getattr(owner, "eos_token_id", None) == 2 and end not in (None, 2):
        warn_caller(
            f"{type(owner).__name__} has eos_token_id 2, with which it takes the features of a text at the token of "
            f"largest id, which is now a new token; set its eos_token_id and config.eos_token_id to {end}"
        )


def _check_noise(noise: Any) -> None:
    if isinstance(noise, bool) or not isinstance(noise, (int, float)):
        raise TypeError(f"noise is {shown(noise)}: expected a number of at least 0")
    if not 0 <= noise < float("inf"):
        raise InputError(f"noise is {noise}: expected a finite number of at least 0")


def _sources(tables: _Tables, texts: list[str], tokenizer: Any, init: Any, output_init: Any) -> tuple[Sources, Sources]:
    """What the rows of the input table start from, and those of the head."""
    height, d = tables.input.shape
    heads = height if tables.head is None else len(tables.head)
    shared = height if output_init is not None else min(height, heads)  # both tables need the rows that init names
    sources = sources_of(init, texts, tokenizer, shared, d, "init")
    if output_init is None:
        return sources, head_sources(sources)
    if tables.head is None:
        raise InputError("output_init is for an output head with a table of its own, which this model lacks; use init")
    return sources, sources_of(output_init, texts, tokenizer, heads, tables.head.shape[1], "output_init")


@dataclass
class _Start:
    """What the new rows of a table start from."""

    rows: torch.Tensor  # [k, d]; [k] of a bias
    mean: torch.Tensor  # [d]: for rows that no token has
    height: int  # the rows that the table had

    def placed(self, table: torch.Tensor, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The table that has grown, places in it, and the rows for them, so that writing them cannot fail."""
        others = sorted(set(range(self.height, len(table))) - set(ids))
        values = torch.cat([self.rows, self.mean.expand(len(others), *self.mean.shape)])
        return table, torch.tensor([*ids, *others], device=table.device), values.to(table)


def _starts(
    tables: _Tables, sources: tuple[Sources, Sources], tokens: int, noise: float, seed: int
) -> dict[str, _Start]:
    """What the rows of each role start from."""
    generator = torch.Generator().manual_seed(seed)
    known = min(tokens, *tables.heights())
    made: dict[str, _Start] = {}
    for role, table in tables.all():
        if role in made:  # a copy of the input table
            continue
        rows = initial_rows(table, sources[role != "input"], known)
        add_noise(rows, table, known, 0.0 if role == "bias" else noise, generator)
        made[role] = _Start(rows, mean_row(table, known), len(table))
    return made


def _grow(model: nn.Module, tables: _Tables, needed: int, multiple: int | None) -> _Tables:
    """Let transformers grow the tables to at least ``needed`` rows, and return them."""
    heights = tables.heights()
    if min(heights) >= needed and (multiple is None or max(heights) % multiple == 0):
        return tables
    if not hasattr(tables.owner, "resize_token_embeddings"):
        raise InputError(
            f"model, {shown(tables.owner)}, has {min(heights)} rows, too few for {needed} tokens, and no "
            "resize_token_embeddings; pass the model that it belongs to"
        )
    device = tables.input.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the old rows are drawn, too, and replaced
        tables.owner.resize_token_embeddings(max(needed, *heights), multiple, mean_resizing=False)
    grown = _tables_of(model)
    if short := [height for height in grown.heights() if height < needed]:
        raise InputError(f"{type(tables.owner).__name__} grew some of its tables, but left one with {short[0]} rows")
    return grown

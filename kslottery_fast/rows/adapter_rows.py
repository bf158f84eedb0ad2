"""Writing an adapter directory of rows that are at hand as tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.arguments import check_integer, check_path, shown
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_directory, write_json, write_safetensors, write_text
from kslottery_fast.base.tokenizer import Tokenizer

from .adapter_card import CardFacts, card
from .adapter_format import CONFIG_FILE, WEIGHTS_FILE, HeadRows, adapter_content, metadata_of
from .adapter_model import ModelKind
from .adapter_tokens import TokenRecord, record_of
from .tables import check_finite
from .token_ids import TokenIds, check_token_ids

__all__ = ["AdapterRows", "check_target", "save_rows_adapter", "write_adapter"]


@dataclass(frozen=True)
class AdapterRows:
    """All that an adapter directory holds.

    Attributes
    ----------
    ids : list of int
        The token ids of the input.
    rows : torch.Tensor
        [k, d].
    vocab_size : int
        The number of rows of the table.
    input_modules, head_modules : sequence of str
        The names of the modules that read them. Without ``head`` the head follows.
    head : HeadRows or None
        Rows of the head apart from those of the input.
    own : sequence of int or None
        The ids of the head's trained rows, in their order. None means that ``head`` is pinned to the base.
    kind : ModelKind
        What PEFT's Auto classes need.
    base : str or None
        The name of the base model.
    tokens : TokenRecord or None
        The strings of the tokens.
    metrics : mapping of str to float
        Numbers for the card.
    shared : bool
        Whether PEFT finds further modules that share the table by itself.
    """

    ids: list[int]
    rows: torch.Tensor
    vocab_size: int
    input_modules: Sequence[str]
    head_modules: Sequence[str]
    head: HeadRows | None
    kind: ModelKind
    base: str | None
    own: Sequence[int] | None = None
    tokens: TokenRecord | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    shared: bool = False

    @property
    def role(self) -> str:
        """What the head does: "frozen", "tied" or "own"."""
        if self.own is not None:
            return "own"
        return "tied" if self.head_modules and self.head is None else "frozen"


def save_rows_adapter(
    token_ids: TokenIds,
    rows: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    input_modules: Sequence[str] = ("model.embed_tokens",),
    head_modules: Sequence[str] = (),
    pinned: tuple[int, torch.Tensor] | None = None,
    task_type: str | None = "CAUSAL_LM",
    base_model_name_or_path: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write rows as a PEFT adapter without a model at hand.

    Parameters
    ----------
    token_ids : TokenIds
        k distinct token ids, Tickets, or the path of a ticket file.
    rows : torch.Tensor
        [k, d], the rows themselves, not differences.
    path : str or path
        The adapter directory.
    vocab_size : int
        The number of rows of the table.
    input_modules : sequence of str
        The names of the embedding modules in the base model. That of get_input_embeddings comes first.
    head_modules : sequence of str
        The names of its tied heads. An untied base has none.
    pinned : tuple of int and torch.Tensor, optional
        For input-only rows on a tied base: some token id and its base row [d]. Without it the head follows the rows.
    task_type : str, optional
        PEFT's name for the kind of model, "CAUSAL_LM", "SEQ_2_SEQ_LM" or None. AutoPeftModel needs it.
    base_model_name_or_path : str, optional
        The name of the base model, which AutoPeftModel loads.
    tokenizer : transformers tokenizer, optional
        Its strings of the tokens are written too, as :func:`kslottery_fast.save_adapter` does. It also looks up strings
        among ``token_ids``.

    Raises
    ------
    InputError
        The ids are bad. The rows have another shape, NaN or no values. The directory holds something else.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> import tempfile
    >>> from kslottery_fast import load_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_rows_adapter([7, 3], torch.ones(2, 4), f"{folder}/adapter", vocab_size=10)
    ...     load_adapter(torch.nn.Embedding(10, 4), f"{folder}/adapter").rows.sum()
    tensor(8., grad_fn=<SumBackward0>)
    """
    check_integer(vocab_size, "vocab_size", 1)
    ids = check_token_ids(token_ids, vocab_size, tokenizer=tokenizer).tolist()
    if not torch.is_tensor(rows):
        raise TypeError(f"rows is {shown(rows)}: expected a tensor [k, d]")
    if rows.dim() != 2 or len(rows) != len(ids):
        raise InputError(f"rows has the shape {list(rows.shape)}, expected [{len(ids)}, d], one row per token id")
    folder = check_target(path)
    _check_names(input_modules, "input_modules", least=1)
    _check_names(head_modules, "head_modules", least=0)
    _check_pinned(pinned, rows.shape[1])
    for text, name in ((task_type, "task_type"), (base_model_name_or_path, "base_model_name_or_path")):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} is {shown(text)}: expected a str or None")
    head = HeadRows([pinned[0]], pinned[1][None]) if pinned is not None else None
    tokens = record_of(tokenizer, ids, vocab_size) if tokenizer is not None else None
    kind, base = ModelKind(task_type, None), base_model_name_or_path
    about = AdapterRows(ids, rows, vocab_size, input_modules, head_modules, head, kind, base, tokens=tokens)
    write_adapter(folder, about)


def write_adapter(folder: Path, about: AdapterRows) -> None:
    """Write an adapter directory, whole or not at all.

    Raises
    ------
    InputError
        Rows have NaN or no values.
    """
    check_rows(about)
    if about.head is not None and about.head.bias is not None:
        warn_caller(
            "the output head has a bias, which PEFT drops when it wraps the head; the adapter keeps the trained bias "
            "entries in a form that PEFT refuses and kslottery_fast.load_adapter loads"
        )
    modules = about.input_modules, about.head_modules
    rows = about.rows.detach().float()
    content, tensors = adapter_content(about.ids, rows, *modules, about.head, shared=about.shared)
    config = {
        "base_model_name_or_path": about.base,
        "task_type": about.kind.task_type,
        "inference_mode": True,
        **about.kind.mapping(),
        **content,
    }
    with atomic_directory(folder) as temporary:
        write_json(temporary / CONFIG_FILE, config)
        write_safetensors(temporary / WEIGHTS_FILE, tensors, file_metadata(about))
        write_text(temporary / "README.md", card(card_facts(about)))


def check_rows(about: AdapterRows) -> None:
    """Refuse rows and bias entries with NaN or without values."""
    rows = about.rows.detach()
    if rows.is_meta:
        raise InputError(
            "rows have no values (device meta): they were offloaded; save them before, or attach them after"
        )
    check_finite(rows, torch.tensor(about.ids), "cannot save the adapter")
    if about.head is not None:
        check_finite(about.head.values, torch.tensor(about.head.ids), "cannot save the adapter, rows of the head")
        if about.head.bias is not None:
            check_finite(
                about.head.bias[:, None], torch.tensor(about.head.ids), "cannot save the adapter, bias entries"
            )


def file_metadata(about: AdapterRows) -> dict[str, str]:
    """The metadata of the weights file."""
    return metadata_of(about.role, about.vocab_size, about.tokens, about.own)


def card_facts(about: AdapterRows) -> CardFacts:
    """What the card says of these rows."""
    record = about.tokens
    added = {each["id"] for each in record.added} if record is not None else set()
    return CardFacts(
        k=len(about.ids),
        vocab_size=about.vocab_size,
        role=about.role,
        base=about.base,
        auto=about.kind.loader(),
        names_head=bool(about.head_modules),
        tokens=record.rows if record is not None else {},
        added=record is not None and not added.isdisjoint(record.rows),
        metrics=about.metrics,
        head_k=len(about.own or ()),
        for_peft=about.head is None or about.head.bias is None,
    )


def check_target(path: Any) -> Path:
    """Refuse a path that holds something else than an adapter."""
    folder = check_path(path)
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"path {folder} exists and is not an adapter directory; choose another path")
    return folder


def _check_names(names: Any, argument: str, *, least: int) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(each, str) for each in names):
        raise TypeError(f"{argument} is {shown(names)}: expected a list of module names")
    if len(names) < least:
        raise InputError(f"{argument} is empty: expected the name of an embedding, such as 'model.embed_tokens'")


def _check_pinned(pinned: Any, dimension: int) -> None:
    if pinned is None:
        return
    pair = isinstance(pinned, tuple) and len(pinned) == 2
    if not pair or not isinstance(pinned[0], int) or not torch.is_tensor(pinned[1]) or pinned[1].shape != (dimension,):
        raise TypeError(f"pinned is {shown(pinned)}: expected None, or a token id and its row, a tensor [{dimension}]")

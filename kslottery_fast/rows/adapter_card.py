"""The README.md of an adapter directory, which the Hub shows, and the name of the base model that it may state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kslottery_fast.base.hub import front_matter, table_cell
from kslottery_fast.base.visible import visible_text

_SHOWN = 40  # tokens in the card's table


def portable_name(name: str | None) -> str | None:
    """The name of a base model if another machine can load it, that is, a Hub id and not a local path.

    Examples
    --------
    >>> portable_name("org/model"), portable_name("/home/me/model"), portable_name("."), portable_name("")
    ('org/model', None, None, None)
    """
    if not name or Path(name).is_absolute() or Path(name).exists():
        return None
    return name


@dataclass(frozen=True)
class CardFacts:
    """What the card says.

    Attributes
    ----------
    k, vocab_size : int
        How many rows of how many.
    role : str
        What the head does: "frozen", "tied" or "own".
    base : str or None
        The base model.
    auto : str
        The class of transformers that loads it.
    names_head : bool
        Whether the adapter names the head, since PEFT takes it for tied.
    tokens : mapping of int to str
        The tokens that have a row, if a tokenizer was given.
    added : bool
        Whether some of them were added to the tokenizer.
    metrics : mapping of str to float
        Numbers that the user gives.
    for_peft : bool
        Whether PEFT can load the adapter.
    lora : bool
        Whether LoRA matrices come with the rows.
    head_k : int
        How many rows the head has of its own.
    """

    k: int
    vocab_size: int
    role: str
    base: str | None
    auto: str
    names_head: bool
    tokens: Mapping[int, str] = field(default_factory=dict)
    added: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    for_peft: bool = True
    lora: bool = False
    head_k: int = 0


def card(facts: CardFacts) -> str:
    """Say what the adapter is and how to load it."""
    what = f"{_rows(facts.k)} of the token embedding"
    if facts.role == "own":
        what += f" and {_rows(facts.head_k)} of the output head"
    changes = f"This adapter has LoRA matrices, and it replaces {what}."
    if not facts.lora:
        changes = f"This adapter replaces {what} and nothing else."
    parts = [
        front_matter(facts.base, "peft", ["kslottery-fast", "token-embeddings"]),
        f"# {facts.k} token rows{' and LoRA' if facts.lora else ''}\n\n{changes}\n",
        _use(facts),
        "" if facts.base else _UNNAMED,
        _loading(facts),
        _tokens(facts),
        _metrics(facts.metrics),
    ]
    return "\n".join(part for part in parts if part)


def _rows(count: int) -> str:
    return f"{count} row" + ("s" if count != 1 else "")


def _use(facts: CardFacts) -> str:
    name = facts.base or "the base model"
    if facts.role == "own":
        return f"Load it onto {name}. The head has trained rows of its own, apart from those of the input.\n"
    if facts.role == "tied":
        return f"Load it onto {name} with tied embeddings: the output head follows the rows.\n"
    if facts.names_head:
        return (
            f"Load it onto {name} as it is. The rows act on the input only. The head keeps its own rows,\n"
            "although both share one table. PEFT's merge_and_unload cannot split that table. Merge with\n"
            "kslottery_fast.merge_rows instead.\n"
        )
    return (
        f"The rows act on the input only. If {name} has tied embeddings, call\n"
        "kslottery_fast.untie_output(base_model) before PeftModel.from_pretrained. On a tied model PEFT\n"
        "would change the output head as well.\n"
    )


def _loading(facts: CardFacts) -> str:
    base, growing = repr(facts.base or "BASE"), ""
    head = f"from transformers import {facts.auto}\n\nbase_model = {facts.auto}.from_pretrained({base})\n"
    if facts.for_peft:
        loaded = f"model = PeftModel.from_pretrained(base_model, {HERE})\n"
        peft = f"```python\nfrom peft import PeftModel\n{head}{loaded}```\n"
    else:
        peft = f"PEFT cannot load it: PEFT drops the bias of a head whose rows it replaces.\n\n```python\n{head}```\n"
    home, loader, argument, tokenizer = "kslottery_fast", "load_adapter", "", ""
    if facts.lora:
        home, loader = "kslottery_fast.integrations.lora_rows", "load_lora_and_rows"
    if facts.added:
        growing = (
            "Some rows are of tokens that were added to the tokenizer of the base model. For PEFT, add them in the\n"
            f"order of their ids, and call base_model.resize_token_embeddings({facts.vocab_size}). {loader}\n"
            "does both.\n\n"
        )
        tokenizer = f"from transformers import AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained({base})\n"
        argument = ", tokenizer=tokenizer"
    ours = f"from {home} import {loader}\n{tokenizer or chr(10)}model = {loader}(base_model, {HERE}{argument})\n"
    return f"{growing}{peft}\nPEFT copies the table in every forward. This makes no copy:\n\n```python\n{ours}```\n"


def _tokens(facts: CardFacts) -> str:
    if not facts.tokens:
        return ""
    lines = [f"| {token} | `{table_cell(text)}` |" for token, text in list(facts.tokens.items())[:_SHOWN]]
    rest = len(facts.tokens) - len(lines)
    more = [f"\n{rest} more are in the metadata of adapter_model.safetensors."] if rest else []
    return "\n".join(["## Tokens", "", "| id | token |", "| --- | --- |", *lines, *more, ""])


def _metrics(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return ""
    names = {name: " ".join(visible_text(name).split()).replace("|", "\\|") for name in metrics}
    lines = [f"| {names[name]} | {value:.6g} |" for name, value in metrics.items()]
    return "\n".join(["## Numbers", "", "| measure | value |", "| --- | --- |", *lines, ""])


_UNNAMED = """The base model has no name that another machine could load, so none is recorded. To record one, save the
adapter with save_adapter(..., base_model_name_or_path="its id on the Hub").
"""

HERE = '"PATH OF THIS FOLDER"'
"""What a card passes to the functions that load the adapter."""

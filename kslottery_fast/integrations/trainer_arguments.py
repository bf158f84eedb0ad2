"""The arguments of a TicketTrainer: those of the Trainer by name, and the tickets."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from kslottery_fast.base.arguments import check_choice, check_flag, check_model, check_tokenizer, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.ticket_ids import read_ticket_ids, token_text
from kslottery_fast.rows.roles import check_output
from kslottery_fast.rows.rowset import RowSet
from kslottery_fast.rows.token_ids import ADDED, TokenIds, check_token_ids
from kslottery_fast.tickets.tickets import Tickets

from .active_vocabulary import check_dataset

WORDS = ("active", "none", ADDED)
"""The words that ``tickets=`` accepts. Any other str is the path of a ticket file."""


def by_name(init: Callable[..., None], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of ``init`` by name, as far as its signature has names for them."""
    parameters = inspect.signature(init).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    first = {"model": args[0]} if args else {}  # an __init__ in between may take *args
    return {**first, **dict(zip(names, args, strict=False)), **kwargs}


def check_arguments(
    given: Mapping[str, Any], output: Any, nonfinite: Any, supervised_logits_only: Any, lazy: Any
) -> None:
    """Refuse arguments of a wrong kind, each by its name, before anything is changed.

    Raises
    ------
    InputError
        A model id in place of a model, no model at all, or an unknown option.
    TypeError
        An argument has the wrong type.
    """
    check_output(output)
    check_choice(nonfinite, ("raise", "skip"), "nonfinite")
    check_flag(supervised_logits_only, "supervised_logits_only")
    check_flag(lazy, "lazy")
    model = given.get("model")
    if isinstance(model, str):
        raise InputError(
            f"model is the model id {model!r}, and rows are attached to a loaded model; load it first, with "
            f"AutoModelForCausalLM.from_pretrained({model!r})"
        )
    if model is not None:
        check_model(model)
    elif given.get("model_init") is None:
        raise InputError("model is None: give a loaded model, or a function that makes one as model_init")
    args, dataset = given.get("args"), given.get("train_dataset")
    if args is not None and not isinstance(args, transformers.TrainingArguments):
        raise TypeError(f"args is {shown(args)}: expected transformers.TrainingArguments")
    if dataset is not None:
        check_dataset(dataset, "train_dataset")


def tokenizer_of(processing_class: Any) -> Any:
    """Return the tokenizer that a processing class is or has, or None.

    Raises
    ------
    TypeError
        A str or another value that cannot process anything.
    """
    if processing_class is None:
        return None
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if hasattr(tokenizer, "convert_ids_to_tokens") or not callable(processing_class):
        return check_tokenizer(tokenizer, "processing_class")
    return None  # for images or sound


def read_tickets(tickets: Any, tokenizer: Any, dataset: Any) -> Any:
    """Return tickets as None, one of ``WORDS`` or token ids. The path of a ticket file is read.

    Raises
    ------
    InputError
        There is no such ticket file, the tickets are of another tokenizer, or "active" comes without a dataset.
    """
    if isinstance(tickets, str) and tickets in WORDS:
        if tickets == "active" and dataset is None:
            raise InputError("tickets='active' needs train_dataset")
        return tickets
    if isinstance(tickets, (str, os.PathLike)):
        try:
            return read_ticket_ids(tickets)
        except InputError as error:
            raise InputError(
                f"tickets is {str(tickets)!r}: expected Tickets, token ids, 'active', 'added', 'none' or the path "
                f"of a ticket file ({error})"
            ) from None
    if isinstance(tickets, Tickets) and tokenizer is not None:
        tickets.check_tokenizer(tokenizer)
    return tickets


def check_attached(tickets: TokenIds, row_set: RowSet, tokenizer: Any, added: Sequence[int] = ()) -> None:
    """Refuse tickets that are not those of the attached rows. Their order does not matter.

    ``added`` are the tokens that were added to the model.

    Raises
    ------
    InputError
        The tickets are of other tokens.
    """
    wanted = check_token_ids(tickets, row_set.vocab_size, "tickets", tokenizer=tokenizer, new_tokens=added)
    if not torch.equal(wanted.sort().values, row_set.token_ids.cpu().sort().values):
        raise InputError("the rows attached to the model are not those of tickets; call detach_rows first")


def texts_of(tickets: Any, tokenizer: Any) -> Callable[[int], str | None]:
    """Return a function that gives the text of a token id, or None if neither tickets nor tokenizer have it."""
    if tokenizer is not None:
        size = len(tokenizer)
        return lambda token: token_text(tokenizer, token) if token < size else None
    texts = getattr(tickets, "token_texts", None)
    known = {} if texts is None else dict(zip(tickets.token_ids.tolist(), texts, strict=True))
    return known.get


def has_adapters(model: nn.Module) -> bool:
    """Tell whether PEFT put adapters into a model, by ``get_peft_model`` or ``add_adapter`` of transformers."""
    return any(getattr(module, "peft_config", None) for module in model.modules())

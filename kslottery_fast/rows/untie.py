"""Splitting the two roles of a table: the output head of a tied model gets a copy of its own."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from kslottery_fast.base.arguments import M
from kslottery_fast.base.errors import InputError

from .attachment import has_rows
from .tables import embedding_table, input_embedding, is_tied, table_users


class TableCopy(NamedTuple):
    """A parameter that a module gets when the roles are split."""

    module: nn.Module
    name: str
    values: torch.Tensor
    trains: bool


def untie_output(model: M) -> M:
    """Give the output head its own copy of the table. The logits stay as they are, bit for bit.

    In a model whose encoder and decoder share the table too, those get copies as well: ``tie_word_embeddings`` is one
    flag for all of them, and ``from_pretrained`` would otherwise find some of the tables missing. For the same reason
    the masked language models that tie the bias of their head to another parameter (BERT, RoBERTa, ALBERT) get a copy
    of the bias.

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
    >>> from kslottery_fast import is_tied
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=10, tie_word_embeddings=True, **sizes))
    >>> is_tied(model), is_tied(untie_output(model))
    (True, False)
    """
    if has_rows(model):
        raise InputError("untie_output needs a model without attached rows; call it before attach_rows")
    return split_roles(model, table_copies(model))


def table_copies(model: nn.Module) -> list[TableCopy]:
    """Return a copy of the table [V, d] for every other user of a tied input table, and of all else that gets untied.

    This changes nothing. It asks for all the memory that splitting takes, so that only this step may fail.
    """
    table = embedding_table(model)
    embeddings, heads = table_users(model, table)
    if not heads:
        return []
    check_can_untie(model)
    primary, trains = input_embedding(model), table.requires_grad
    others = [*(module for module in embeddings if module is not primary), *heads]
    copies = [TableCopy(module, "weight", table.detach().clone(), trains) for module in others]
    for module, name in _untied_with_the_table(model):
        value: Any = getattr(module, name)
        if value is not table:
            copies.append(TableCopy(module, name, value.detach().clone(), value.requires_grad))
    return copies


def split_roles(model: M, copies: list[TableCopy]) -> M:
    """Give the users of the input table their :func:`table_copies`; see :func:`untie_output`."""
    if not copies:
        return model
    for copy in copies:
        setattr(copy.module, copy.name, nn.Parameter(copy.values, requires_grad=copy.trains))
    for part in _configs(model):
        part.tie_word_embeddings = False
    for module in model.modules():
        # transformers 5 keeps the list of what is tied on every model, for tie_weights and save_pretrained.
        if hasattr(module, "all_tied_weights_keys"):
            expand: Any = module.get_expanded_tied_weights_keys
            module.all_tied_weights_keys = expand(all_submodels=True)
    return model


def check_can_untie(model: nn.Module) -> None:
    """Refuse an architecture whose forward reads ``config.tie_word_embeddings`` to scale its logits."""
    if not is_tied(model):
        return
    for part in {type(module) for module in model.modules()}:  # the class that scales may be inside a wrapper
        code = getattr(inspect.unwrap(part.forward), "__code__", None)
        if code is None or "tie_word_embeddings" not in code.co_names:
            continue
        raise InputError(
            f"{part.__name__} scales its logits by config.tie_word_embeddings, so its head cannot "
            "get a table of its own; use output='tied', or keep the rows attached and save them as an adapter"
        )


def _configs(model: nn.Module) -> list[Any]:
    """The configs that say whether the model is tied."""
    config: Any = getattr(model, "config", None)
    parts = [] if config is None else [config, config.get_text_config(decoder=True)]
    return [part for part in parts if hasattr(part, "tie_word_embeddings")]


def _untied_with_the_table(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The parameters that are tied to another one for as long as the config says that the table is tied.

    transformers has one flag for all that a model ties. Without the flag, ``from_pretrained`` expects each of them in
    the checkpoint.
    """
    found = {}
    for owner in model.modules():
        if not hasattr(owner, "all_tied_weights_keys"):
            continue
        known: Any = owner
        parameters = dict(owner.named_parameters(remove_duplicate=False))
        with _flag_off(model):
            still_tied = known.get_expanded_tied_weights_keys(all_submodels=True)
        for target, source in known.all_tied_weights_keys.items():
            if target in still_tied or target not in parameters or parameters[target] is not parameters.get(source):
                continue
            path, _, name = target.rpartition(".")
            module = owner.get_submodule(path)
            found[id(module), name] = module, name
    return list(found.values())


@contextmanager
def _flag_off(model: nn.Module) -> Iterator[None]:
    """Let the configs say for a moment that nothing is tied."""
    before = [(part, part.tie_word_embeddings) for part in _configs(model)]
    try:
        for part, _ in before:
            part.tie_word_embeddings = False
        yield
    finally:
        for part, value in before:
            part.tie_word_embeddings = value

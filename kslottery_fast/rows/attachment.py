"""What a model with attached rows keeps: how it was before, and guards against wrong use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from kslottery_fast.base.errors import InputError

from .overlay import Overlay, remove_overlay


@dataclass
class Attachment:
    """What is kept on the model that was given to attach_rows."""

    output: Literal["frozen", "tied"]
    names: frozenset[str]  # of all parameters, as they were
    frozen: frozenset[str]  # of those that attach_rows switched off


_MARK = "_kslottery_attachment"


def attachment(model: nn.Module) -> tuple[nn.Module, Attachment]:
    """The very model that was given to attach_rows, without wrappers, and what it keeps.

    Raises
    ------
    InputError
        No rows are attached, or the module holds several models with rows.
    """
    found = all_attachments(model)
    if len(found) > 1:
        raise InputError(f"model holds {len(found)} models with attached rows; pass one of them")
    return found[0]


def all_attachments(model: nn.Module) -> list[tuple[nn.Module, Attachment]]:
    """As :func:`attachment`, of every model with rows that the module holds."""
    found = [(module, vars(module)[_MARK]) for module in model.modules() if _MARK in vars(module)]
    if not found:
        raise InputError("no rows are attached to this model; call attach_rows first")
    return found


def attach(
    model: nn.Module, embeddings: Sequence[nn.Embedding], *, role: Literal["frozen", "tied"], freeze: bool
) -> None:
    """Freeze the tables of these embeddings, with ``freeze`` all parameters, and keep what it takes to go back."""
    parameters = dict(model.named_parameters())
    tables = {id(embedding.weight) for embedding in embeddings}
    frozen = {name for name, each in parameters.items() if each.requires_grad and (freeze or id(each) in tables)}
    vars(model)[_MARK] = Attachment(role, frozenset(parameters), frozenset(frozen))
    for name in frozen:
        parameters[name].requires_grad_(False)


def guard(model: nn.Module) -> None:
    """Let every part that holds rows refuse what would write a wrong checkpoint or break the overlay."""
    for part in model.modules():
        if any(isinstance(module, Overlay) for module in part.modules()):
            vars(part).update({name: refuse for name, refuse in _GUARDS.items() if hasattr(part, name)})


def detach(model: nn.Module) -> None:
    """Take off overlay, guards and mark, and switch on what :func:`attach` switched off.

    The flags stay as they are where the model has parameters that were not there then: an adapter library wants the
    rest of the model frozen. It may have put its parameters around the model that has the rows, so ``model`` is what
    the user works with.
    """
    owner, kept = attachment(model)
    for module in owner.modules():
        for name, refuse in _GUARDS.items():
            if vars(module).get(name) is refuse:
                delattr(module, name)
        if isinstance(module, Overlay):
            remove_overlay(module)
    del vars(owner)[_MARK]
    parameters = dict(owner.named_parameters())
    ours = {id(parameter) for name, parameter in parameters.items() if name in kept.names}
    if all(id(parameter) in ours for parameter in model.parameters()):
        for name in kept.frozen & parameters.keys():
            parameters[name].requires_grad_(True)


# Plain functions on the instance, so that deepcopy and pickle keep them as they are.
def _refuse_save(*_args: Any, **_kwargs: Any) -> None:
    raise InputError(
        "with rows attached, save_pretrained would write a checkpoint that from_pretrained cannot read; call "
        "merge_rows(model) first, or save the rows alone with kslottery_fast.rows.save_adapter"
    )


def _refuse_resize(*_args: Any, **_kwargs: Any) -> None:
    raise InputError(
        "resize_token_embeddings needs a model without attached rows; call merge_rows or detach_rows first"
    )


_GUARDS = {"save_pretrained": _refuse_save, "resize_token_embeddings": _refuse_resize}

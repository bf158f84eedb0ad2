"""Finding the attached rows of a model, and the record that restores the model when they are taken off.

This file also has the guards against wrong use of a model with rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from kslottery_fast.base.arguments import check_model
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import HeadRole

from .overlay import Overlay, RowEmbedding, RowHead, remove_overlay
from .peft_saving import tell_no_more, tell_on_save


@dataclass
class Attachment:
    """Kept on the model that was given to attach_rows."""

    output: HeadRole
    names: frozenset[str]  # of all parameters, as they were
    frozen: frozenset[str]  # of those that attach_rows switched off


def has_rows(model: nn.Module) -> bool:
    """Tell whether rows are attached to a model. Wrappers are looked through.

    Raises
    ------
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = nn.Embedding(10, 4)
    >>> has_rows(model), has_rows(attach_rows(model, [7, 3]))
    (False, True)
    """
    return any(isinstance(module, RowEmbedding) for module in check_model(model).modules())


def get_rows(model: nn.Module) -> RowEmbedding:
    """Return the embedding that rows are attached to. Wrappers are looked through.

    Raises
    ------
    InputError
        No rows are attached (:func:`has_rows` tells), or the module holds several models with rows.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> rows = get_rows(attach_rows(nn.Embedding(10, 4), [7, 3]))
    >>> rows
    RowEmbedding(10, 4, rows={'default': 2}, in_use='default')
    >>> rows.token_ids, rows.rows.shape
    (tensor([7, 3]), torch.Size([2, 4]))
    """
    found = [module for module in check_model(model).modules() if isinstance(module, RowEmbedding)]
    if not found:
        raise InputError("no rows are attached to this model; call attach_rows first, or check has_rows(model)")
    if any(each.row_sets is not found[0].row_sets for each in found):
        raise InputError("model holds several models with attached rows; pass one of them")
    return found[0]


def get_output_rows(model: nn.Module) -> RowHead:
    """Return the output head that has rows of its own. Wrappers are looked through.

    ``get_output_rows(model).rows`` [k, d] and ``.token_ids`` [k] are those of the set in use, and ``.row_bias`` [k] its
    bias entries, or None.

    Raises
    ------
    InputError
        No rows are attached, or the head has none of its own: they were attached without ``output="own"``.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=10, tie_word_embeddings=False, **sizes))
    >>> get_output_rows(attach_rows(model, [7, 3], output="own", output_ids=[3])).token_ids
    tensor([3])
    """
    owner, kept = attachment(check_model(model))
    if kept.output != "own":
        raise InputError(
            f"the output head has no rows of its own: they were attached with output={kept.output!r}; call detach_rows "
            "and then attach_rows(model, token_ids, output='own')"
        )
    return own_row_heads(owner)[0]


def row_heads(model: nn.Module) -> list[RowHead]:
    """Return the output heads that read rows, their own or those of the input."""
    return [module for module in model.modules() if isinstance(module, RowHead)]


def own_row_heads(model: nn.Module) -> list[RowHead]:
    """Return the output heads of a model that was attached with ``output="own"``.

    Raises
    ------
    InputError
        There is none any more, because the head was replaced.
    """
    found = row_heads(model)
    if not found:
        raise InputError(
            "the output head that the rows were attached to is no longer in the model; call detach_rows, which "
            "restores the rest of the model"
        )
    return found


def attached_model(model: nn.Module) -> nn.Module:
    """Return the model itself that was given to :func:`kslottery_fast.rows.attach_rows`, without its wrappers.

    Raises
    ------
    InputError
        No rows are attached, or the module holds several models with rows.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> inner = attach_rows(nn.Embedding(10, 4), [7, 3])
    >>> attached_model(nn.Sequential(inner)) is inner
    True
    """
    return attachment(check_model(model))[0]


def output_role(model: nn.Module) -> HeadRole:
    """Return what the output head does about the attached rows: it is "frozen", "tied" to them, or has its "own".

    Raises
    ------
    InputError
        No rows are attached, or the module holds several models with rows.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> output_role(attach_rows(nn.Embedding(10, 4), [7, 3]))
    'frozen'
    """
    return attachment(check_model(model))[1].output


_MARK = "_kslottery_attachment"


def attachment(model: nn.Module) -> tuple[nn.Module, Attachment]:
    """Return the model itself that was given to attach_rows, without wrappers, and what it keeps.

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
    """Return what :func:`attachment` returns, for every model with rows that the module holds."""
    found = [(module, vars(module)[_MARK]) for module in model.modules() if _MARK in vars(module)]
    if not found:
        raise InputError("no rows are attached to this model; call attach_rows first")
    return found


def attach(model: nn.Module, tables: Iterable[nn.Parameter], *, role: HeadRole, freeze: bool) -> None:
    """Freeze these tables, with ``freeze`` all parameters, and keep what it takes to go back."""
    parameters = dict(model.named_parameters())
    ours = {id(table) for table in tables}
    frozen = {name for name, each in parameters.items() if each.requires_grad and (freeze or id(each) in ours)}
    vars(model)[_MARK] = Attachment(role, frozenset(parameters), frozenset(frozen))
    for name in frozen:
        parameters[name].requires_grad_(False)


def guard(model: nn.Module) -> None:
    """Let every part that holds rows refuse what would write a wrong checkpoint or break the overlay."""
    for part in model.modules():
        if any(isinstance(module, Overlay) for module in part.modules()):
            vars(part).update({name: refuse for name, refuse in _GUARDS.items() if hasattr(part, name)})
    tell_on_save(model)


def detach(model: nn.Module) -> None:
    """Take off overlay, guards and mark, and switch on what :func:`attach` switched off.

    The flags stay as they are if the model has parameters that were not there then, because an adapter library wants
    the rest of the model frozen. It may have put its parameters around the model that has the rows, so ``model`` is
    what the user works with.
    """
    owner, kept = attachment(model)
    tell_no_more(owner)
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
        "merge_rows(model) first, or save the rows alone with kslottery_fast.save_adapter, or LoRA and rows with "
        "kslottery_fast.integrations.lora_rows.save_lora_and_rows"
    )


def _refuse_push(*_args: Any, **_kwargs: Any) -> None:
    raise InputError(
        "with rows attached, push_to_hub would upload a checkpoint that from_pretrained cannot read; call "
        "merge_rows(model) first, or upload the rows alone with kslottery_fast.rows.push_adapter"
    )


def _refuse_resize(*_args: Any, **_kwargs: Any) -> None:
    raise InputError(
        "resize_token_embeddings needs a model without attached rows; call merge_rows or detach_rows first"
    )


def _refuse_input(*_args: Any, **_kwargs: Any) -> None:
    raise InputError(
        "set_input_embeddings would drop the attached rows with their embedding; call merge_rows or detach_rows first"
    )


def _refuse_output(*_args: Any, **_kwargs: Any) -> None:
    raise InputError(
        "set_output_embeddings needs a model without attached rows; call merge_rows or detach_rows first, and "
        "attach_rows again afterwards"
    )


_GUARDS = {
    "save_pretrained": _refuse_save,
    "push_to_hub": _refuse_push,
    "resize_token_embeddings": _refuse_resize,
    "set_input_embeddings": _refuse_input,
    "set_output_embeddings": _refuse_output,
}


def _refuse_wrapping(parent: nn.Module, name: str, module: Any) -> None:
    """Refuse a layer of PEFT around a module that reads rows."""
    if isinstance(module, Overlay) and name in ("base_layer", "original_module"):
        kind = type(parent).__name__
        if type(parent).__module__.partition(".")[0] == "peft":
            raise InputError(
                f"PEFT would put its {kind} around the {type(module).__name__} that attached rows are read by, and it "
                "neither reads nor merges rows; take the name of that module (embed_tokens, wte, lm_head, ...) out of "
                "target_modules, modules_to_save and trainable_token_indices, or call detach_rows first"
            )


# PEFT asks nothing of a module that it wraps, but torch tells who becomes a child of whom.
register_module_module_registration_hook(_refuse_wrapping)

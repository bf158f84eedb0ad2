"""Where a model keeps its token table: finding it and its users, reading and writing rows.

A table may have several users: the input embedding, the embeddings of encoder and decoder (T5, M2M100), and the output
head (tied models). Two modules share a table if they hold the same Parameter. The config may be wrong about it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from kslottery_fast.base.arguments import check_model, shown
from kslottery_fast.base.dtensors import is_dtensor, is_partitioned, is_sharded, rows_of, whole, whole_shape
from kslottery_fast.base.errors import InputError

from .token_ids import active_token_ids, check_token_ids  # the home of these two names in version 0.1

__all__ = [
    "TABLE_DTYPES",
    "PlacedRows",
    "active_token_ids",
    "base_rows",
    "check_finite",
    "check_readable",
    "check_table",
    "check_token_ids",
    "check_writable",
    "embedding_table",
    "has_values",
    "input_embedding",
    "input_modules",
    "is_quantized",
    "is_tied",
    "place_rows",
    "table_shape",
    "table_users",
    "write_rows",
]

TABLE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes of plain tables. Any other is a quantized format."""


def input_embedding(model: nn.Module, name: str = "model") -> nn.Embedding:
    """Return the module that turns token ids into vectors. An ``nn.Embedding`` is its own."""
    check_model(model, name)
    if isinstance(model, nn.Embedding):
        return model
    getter = getattr(model, "get_input_embeddings", None)
    try:
        embedding = getter() if getter is not None else None
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Embedding):
        # PEFT keeps a module that LoRA wraps as base_layer. If it trains a copy, the module is original_module.
        if any(isinstance(getattr(embedding, part, None), nn.Embedding) for part in ("base_layer", "original_module")):
            raise InputError(
                f"the input embedding of {name} is wrapped by PEFT ({type(embedding).__name__}), which trains its rows "
                "itself; take its name (embed_tokens, wte, ...) out of target_modules, modules_to_save and "
                "trainable_token_indices, or merge_and_unload first"
            )
        found = "none" if embedding is None else f"a {type(embedding).__name__}"
        raise InputError(f"{name}, {shown(model)}, has no input embedding: expected an nn.Embedding, found {found}")
    return embedding


def embedding_table(model: nn.Module) -> torch.Tensor:
    """Return the weight [V, d] of the input embedding itself, not a copy.

    With rows attached this is the frozen base table. The trained rows are in ``get_rows(model).rows``.

    Raises
    ------
    InputError
        The model has no input embedding.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> embedding_table(torch.nn.Embedding(10, 4)).shape
    torch.Size([10, 4])
    """
    return input_embedding(model).weight


def table_users(model: nn.Module, table: torch.Tensor) -> tuple[list[nn.Embedding], list[nn.Module]]:
    """Return the modules that hold ``table`` as their weight: (embeddings, output heads)."""
    users = [module for module in model.modules() if module._parameters.get("weight") is table]
    embeddings = [module for module in users if isinstance(module, nn.Embedding)]
    return embeddings, [module for module in users if not isinstance(module, nn.Embedding)]


def input_modules(model: nn.Module, token_ids: torch.Tensor) -> list[nn.Embedding]:
    """Return every embedding that reads the input table: its users, and copies in encoder or decoder.

    An untied M2M100 keeps three copies of one table, since its config has one flag for all sharing. A copy is
    recognized by equal rows at ``token_ids``, which takes k * d reads in place of V * d.
    """
    table = embedding_table(model)
    modules, _ = table_users(model, table)
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return modules
    values = base_rows(input_embedding(model), token_ids)
    for part in (model.get_encoder(), model.get_decoder()):  # type: ignore[operator]
        other = part.get_input_embeddings()
        if not isinstance(other, nn.Embedding) or any(other is module for module in modules):
            continue
        if table_shape(other) == table_shape(input_embedding(model)) and torch.equal(
            base_rows(other, token_ids).to(values), values
        ):
            modules.append(other)
    return modules


def is_tied(model: nn.Module) -> bool:
    """Tell whether an output head uses the very table of the input embedding.

    Raises
    ------
    InputError
        The model has no input embedding.
    TypeError
        ``model`` is not a model.

    Examples
    --------
    >>> is_tied(torch.nn.Embedding(10, 4))
    False
    """
    return bool(table_users(model, embedding_table(model))[1])


def is_quantized(module: nn.Module) -> bool:
    """Tell whether a weight is not a plain tensor of floats, but int8 and the like, or a tensor subclass (torchao)."""
    weight: Any = module.weight
    return weight.dtype not in TABLE_DTYPES or type(weight.data) is not torch.Tensor


def table_shape(module: nn.Module) -> tuple[int, int]:
    """Return [V, d] of the table of an embedding or an output head.

    A quantized weight may be packed into another shape, so the module is asked.
    """
    if is_quantized(module):
        known: Any = module
        if isinstance(module, nn.Embedding):
            return module.num_embeddings, module.embedding_dim
        return known.out_features, known.in_features
    shape = whole_shape(module.weight)  # type: ignore[arg-type]
    return shape[0], shape[1]


def has_values(module: nn.Module) -> bool:
    """Tell whether the table is in memory, or in a place where an accelerate hook finds it."""
    weight: Any = module.weight
    return not weight.is_meta or offloaded(module) is not None


def check_table(embedding: nn.Embedding) -> torch.Tensor:
    """Return the weight of an embedding whose rows can be replaced, and refuse any other embedding."""
    check_readable(embedding, "embedding table")
    if embedding.max_norm is not None:
        raise InputError("the embedding has max_norm, which rewrites its table in every forward; set it to None")
    if embedding.scale_grad_by_freq:
        raise InputError("the embedding has scale_grad_by_freq, which rows do not support; set it to False")
    return embedding.weight


def check_readable(module: nn.Module, what: str) -> None:
    """Refuse a table that is sharded or has no values. ``what`` names it in the message."""
    if is_dtensor(module.weight):
        raise InputError(f"the {what} is sharded (a DTensor); attach the rows before fully_shard")
    if is_partitioned(module.weight):
        raise InputError(
            f"the {what} is partitioned by DeepSpeed ZeRO-3; attach the rows before deepspeed.initialize, to a "
            "model that was loaded without zero.Init"
        )
    if not has_values(module):
        raise InputError(
            f"the {what} has no values (device meta) and no accelerate hook that would load them; load the "
            "model with the table in memory, or offload it by accelerate"
        )


def check_writable(module: nn.Module, what: str) -> None:
    """Refuse to write rows into a table that is sharded, offloaded or quantized."""
    weight: Any = module.weight
    kinds = {"sharded": is_sharded(weight), "offloaded": weight.is_meta, "quantized": is_quantized(module)}
    for kind, found in kinds.items():
        if found:
            raise InputError(
                f"cannot {what} a table that is {kind}; save the rows with "
                "kslottery_fast.save_adapter, and load them onto a model in memory"
            )


@torch.no_grad()
def base_rows(module: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the rows [k, d] of the table itself, wherever it is.

    An offloaded table is read where accelerate keeps it, and a quantized embedding is dequantized by its module. A
    DTensor is gathered at these rows, and a table that DeepSpeed partitioned as a whole; all processes have to call
    this. For a quantized output head there is :func:`kslottery_fast.rows.heads.head_rows`.
    """
    weight: Any = module.weight
    if weight.is_meta and (kept := offloaded(module)) is not None:
        table, device = kept
        return table[token_ids.to(table.device)].to(device)
    ids = token_ids.to(weight.device)
    if is_dtensor(weight):
        return rows_of(weight, ids)
    if is_partitioned(weight):
        return whole(weight).index_select(0, ids)
    if is_quantized(module):
        # Called through the class, so that no hook fires. An overlay has rows of its own, so it is the class below it.
        values: torch.Tensor = getattr(type(module), "overlaid", type(module)).forward(module, ids)
        return values
    found: torch.Tensor = weight.detach().index_select(0, ids)
    return found


def offloaded(module: nn.Module, name: str = "weight") -> tuple[torch.Tensor, torch.device] | None:
    """Where an accelerate hook keeps a parameter, in memory or on disk, and the device that it computes on."""
    hook: Any = getattr(module, "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        weights = getattr(each, "weights_map", None)
        if weights is not None:
            return weights[name], torch.device(each.execution_device)
    return None


def check_finite(values: torch.Tensor, token_ids: torch.Tensor, what: str) -> None:
    """Refuse rows [k, d] with NaN or Inf. The message names the first tokens."""
    bad = token_ids.cpu()[~torch.isfinite(values).all(dim=1).cpu()]
    if len(bad):
        first = ", ".join(str(token) for token in bad[:5].tolist()) + (", ..." if len(bad) > 5 else "")
        raise InputError(f"{what}: {len(bad)} of {len(token_ids)} rows hold NaN or Inf (token ids {first})")


class PlacedRows(NamedTuple):
    """Values for some rows of a module's parameter, on its device and in its dtype."""

    module: nn.Module
    ids: torch.Tensor
    values: torch.Tensor
    name: str


def place_rows(
    modules: Sequence[nn.Module], ids: torch.Tensor, values: torch.Tensor, name: str = "weight"
) -> list[PlacedRows]:
    """Each module with the ids and values for its table, or for its bias."""
    parameters: list[Any] = [getattr(module, name) for module in modules]
    return [
        PlacedRows(module, ids.to(each.device), values.to(each), name)
        for module, each in zip(modules, parameters, strict=True)
    ]


def write_rows(placed: list[PlacedRows]) -> None:
    """Write what :func:`place_rows` prepared. This needs no more memory."""
    for module, ids, values, name in placed:
        getattr(module, name).index_copy_(0, ids, values)

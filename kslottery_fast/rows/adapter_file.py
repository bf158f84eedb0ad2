"""Rows as PEFT adapters on disk, written and read without importing peft (checked against peft 0.21).

PEFT has one format for rows, TrainableTokens, and it follows ``config.tie_word_embeddings``: on a tied model
the head always changes with the rows. Rows for the input role alone (``output="frozen"``) need something else
there. PEFT's LoRA config can hold ``trainable_token_indices`` per module, and modules with *different*
indices are kept apart, tied or not. So such a set is written as a LoRA adapter without LoRA matrices: the
rows for the input modules, and for the head one row that is pinned to its own value, which changes nothing.
PEFT then gives the logits of our merged model on the tied base and on an untied copy of it. (PEFT's
``merge_and_unload`` cannot split a tied table: merge with ``merge_rows``.)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from kslottery_fast.base.dtensors import is_sharded, whole
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import (
    atomic_directory,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
    write_text,
)

from .attach import attach_rows, attached_model, get_rows, has_rows, output_role
from .overlay import RowEmbedding
from .sets import add_rows
from .tables import (
    base_rows,
    check_finite,
    check_token_ids,
    input_embedding,
    input_modules,
    is_tied,
    table_shape,
    table_users,
)

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TOKENS_KEY, _LORA_KEY = ".trainable_tokens_delta", ".token_adapter.trainable_tokens_delta"


def save_adapter(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    base: str = "auto",
    base_model_name_or_path: str | None = None,
) -> None:
    """Write the rows attached to a model as an adapter that PEFT loads.

    Parameters
    ----------
    model : a model with attached rows; not changed. Of a sharded one (FSDP2, DeepSpeed ZeRO-3) all processes have to
        call this: they gather the rows, and the first writes.
    path : the adapter directory; made, or replaced if it holds an adapter. Written whole or not at all.
    base : what PEFT will load it onto. "auto": the model that the rows are attached to, tied or not.
        "untied": the model after :func:`kslottery_fast.rows.untie_output`; the plainest format, for
        input-only rows of a tied model.
    base_model_name_or_path : recorded for AutoPeftModel; default: where the model came from.

    Raises
    ------
    InputError : no rows attached, NaN in them, a tied head with a bias (PEFT drops it),
        ``base="untied"`` for rows that the head follows, a directory that holds something else.
    """
    if base not in ("auto", "untied"):
        raise InputError(f"base must be 'auto' or 'untied', not {base!r}")
    role, owner = output_role(model), cast(Any, attached_model(model))
    embedding = cast(RowEmbedding, input_embedding(owner))
    names = {id(module): name for name, module in _base_modules(owner)}
    heads: list[Any] = list(table_users(owner, embedding.weight)[1])
    config = getattr(owner, "config", None)
    if not heads and getattr(config, "tie_word_embeddings", False):
        heads = [owner.get_output_embeddings()]  # not tied, but PEFT goes by the config
    if base == "untied":
        if role == "tied":
            raise InputError("base='untied' does not fit rows that the head follows; save them with base='auto'")
        heads = []
    for head in heads:
        if getattr(head, "bias", None) is not None:
            raise InputError(
                f"the head {names[id(head)]} has a bias, which PEFT drops when it wraps a tied head; "
                "attach the rows with output='frozen', save with base='untied', load onto untie_output(base model)"
            )
    pin = None
    if heads and role == "frozen":
        token = _token_outside(embedding.token_ids.tolist(), table_shape(embedding)[0])
        # Tied or not by now: accelerate gives what it offloads weights of their own.
        pinned_to = embedding if heads[0].weight is embedding.weight else heads[0]
        pin = token, base_rows(pinned_to, torch.tensor([token]))[0]
    # Where the model is sharded these two gather, on every process; then the first one writes.
    rows, modules = whole(embedding.rows), input_modules(owner, embedding.token_ids)
    if (is_sharded(embedding.rows) or is_sharded(embedding.weight)) and dist.get_rank() != 0:
        return
    save_rows_adapter(
        embedding.token_ids,
        rows,
        path,
        vocab_size=table_shape(embedding)[0],
        input_modules=[names[id(module)] for module in modules],
        head_modules=[names[id(head)] for head in heads],
        pinned=pin,
        task_type=_task_type(owner),
        base_model_name_or_path=base_model_name_or_path or getattr(config, "_name_or_path", None) or None,
    )


def save_rows_adapter(
    token_ids: Any,
    rows: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    input_modules: Sequence[str] = ("model.embed_tokens",),
    head_modules: Sequence[str] = (),
    pinned: tuple[int, torch.Tensor] | None = None,
    task_type: str | None = "CAUSAL_LM",
    base_model_name_or_path: str | None = None,
) -> None:
    """Write rows as a PEFT adapter without a model at hand.

    Parameters
    ----------
    token_ids : k distinct token ids, or Tickets.
    rows : [k, d], the values of the rows themselves, not differences.
    path : the adapter directory.
    vocab_size : rows of the table.
    input_modules : names of the embedding modules in the base model, that of get_input_embeddings first.
    head_modules : names of its tied heads; none for an untied base.
    pinned : for input-only rows on a tied base: some token id and the base row [d] of it. Without it the head
        follows the rows.
    task_type : PEFT's name for the kind of model, "CAUSAL_LM", "SEQ_2_SEQ_LM" or None; AutoPeftModel needs it.
    base_model_name_or_path : recorded for AutoPeftModel.

    Raises
    ------
    InputError : bad ids, rows of another shape, with NaN or without values, a directory that holds something else.
    """
    ids = check_token_ids(token_ids, vocab_size)
    if rows.dim() != 2 or len(rows) != len(ids):
        raise InputError(f"rows has the shape {list(rows.shape)}, expected [{len(ids)}, d], one row per token id")
    if rows.is_meta:
        raise InputError(
            "rows have no values (device meta): they were offloaded; save them before, or attach them after"
        )
    check_finite(rows.detach(), ids, "cannot save the adapter")
    folder = Path(path)
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no adapter directory; choose another path")
    config: dict[str, Any] = {
        "base_model_name_or_path": base_model_name_or_path,
        "task_type": task_type,
        "inference_mode": True,
    }
    values, indices = rows.detach().float(), ids.tolist()
    if pinned is None:
        # On a tied model PEFT finds what shares the table by itself, and fails on a module named beside it.
        targets = list(input_modules[:1] if head_modules else input_modules)
        config |= {"peft_type": "TRAINABLE_TOKENS", "target_modules": targets, "token_indices": indices}
        tensors = {f"{_PREFIX}{name}{_TOKENS_KEY}": values.clone() for name in (*input_modules, *head_modules)}
    else:
        token, row = pinned
        config |= {
            "peft_type": "LORA",
            "r": 1,
            "target_modules": "dummy-target-modules",  # PEFT's own name for "no LoRA matrices"
            "trainable_token_indices": {
                **dict.fromkeys(input_modules, indices),
                **{name: [token] for name in head_modules},
            },
        }
        tensors = {f"{_PREFIX}{name}{_LORA_KEY}": values.clone() for name in input_modules}
        tensors |= {f"{_PREFIX}{name}{_LORA_KEY}": row.detach().float()[None].clone() for name in head_modules}
    role = "tied" if head_modules and pinned is None else "frozen"
    metadata = {"kslottery_output": role, "kslottery_vocab_size": str(vocab_size)}
    with atomic_directory(folder) as temporary:
        write_json(temporary / CONFIG_FILE, config)
        write_safetensors(temporary / WEIGHTS_FILE, tensors, metadata)
        write_text(temporary / "README.md", _readme(len(ids), role, base_model_name_or_path, bool(head_modules)))


def load_adapter(model: nn.Module, path: str | os.PathLike[str], *, name: str = "default") -> nn.Module:
    """Attach the rows of an adapter directory, written by us or by PEFT, to a model.

    The head's role is that which the adapter was saved with. For one of PEFT's own it is PEFT's: the head of
    a tied model follows the rows.

    Parameters
    ----------
    model : the base model of the adapter. Rows that are attached already stay, and stay in use: the adapter then
        is one more set (:mod:`kslottery_fast.rows.sets`), and the head must have the same role for both.
    path : a TrainableTokens adapter, or a LoRA adapter with ``trainable_token_indices`` and no LoRA matrices.
    name : of the set that the rows become.

    Returns
    -------
    The model with its rows attached, as after :func:`kslottery_fast.rows.attach_rows`.

    Raises
    ------
    InputError : files missing or damaged, another kind of adapter, rows that do not fit the model, a head
        that the adapter changes and the model has untied, a name that is taken. The model is then as it was.
    """
    folder = Path(path)
    config = read_json(folder / CONFIG_FILE)
    tensors = read_safetensors(folder / WEIGHTS_FILE, remedy="save the adapter anew")
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG_FILE} is not the configuration of an adapter")
    kind = config.get("peft_type")
    indices: Any = config.get("token_indices" if kind == "TRAINABLE_TOKENS" else "trainable_token_indices")
    suffix = _TOKENS_KEY if kind == "TRAINABLE_TOKENS" else _LORA_KEY
    ours = kind in ("TRAINABLE_TOKENS", "LORA") and indices
    if not ours or not all(key.startswith(_PREFIX) and key.endswith(suffix) for key in tensors):
        raise InputError(f"{folder} is a {kind} adapter with more than rows in it; load it with PEFT")
    rows = {key.removeprefix(_PREFIX).removesuffix(suffix): value for key, value in tensors.items()}
    V, d = table_shape(input_embedding(model))
    head = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    head_name = next((name for name, module in _base_modules(model) if head is not None and module is head), None)
    head_rows = rows.pop(head_name, None) if head_name is not None else None
    if not rows:
        raise InputError(f"{folder} holds no rows of an input embedding")
    values = next(iter(rows.values()))
    if any(not torch.equal(other, values) for other in list(rows.values())[1:]):
        raise InputError(f"{folder} holds different rows for different embeddings; load it with PEFT")
    head_ids = indices.get(head_name) if isinstance(indices, dict) else None
    if isinstance(indices, dict):
        indices = next(iter(ids for name, ids in indices.items() if name != head_name))
    ids = check_token_ids(indices, V, f"{folder / CONFIG_FILE}: token indices")
    if values.shape != (len(ids), d):
        raise InputError(f"{folder} has rows {list(values.shape)}, the model needs {[len(ids), d]}")
    check_finite(values, ids, f"cannot load {folder}")
    if head is not None and head_ids is not None and head_ids != indices:
        # The head has rows of its own. Ours are pinned to the base; anything else is not a row set for the
        # input.
        own = head.weight.detach()[torch.tensor(head_ids)]
        if head_rows is None or not torch.equal(head_rows.to(own), own):
            raise InputError(f"{folder} has other rows for the head than the base model; load it with PEFT")
        output = "frozen"
    else:
        output = tensors.metadata.get("kslottery_output") or ("tied" if is_tied(model) else "frozen")
        if head_rows is not None and not torch.equal(head_rows, values):
            raise InputError(f"{folder} holds different rows for the head; load it with PEFT")
        if (output == "tied" or head_rows is not None) and not is_tied(model):
            raise InputError(f"{folder} changes the head too, but this model is not tied; load it onto the tied base")
    if not has_rows(model):
        attach_rows(model, ids, output=output, name=name)
    elif output_role(model) != output:
        raise InputError(
            f"{folder} has rows with output={output!r}, the attached rows have output={output_role(model)!r}: the head "
            "cannot play both roles; detach_rows first"
        )
    else:
        add_rows(model, name, ids)
    with torch.no_grad():
        get_rows(model).row_sets[name].rows.copy_(values)  # type: ignore[operator]
    return model


def _base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The named modules of the model that PEFT may have wrapped, named as without PEFT: so an adapter names them."""
    base = next(module for module in model.modules() if not type(module).__module__.startswith("peft."))
    return [(name.replace(".base_layer", ""), module) for name, module in base.named_modules()]


def _task_type(model: Any) -> str | None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if hasattr(model, "generate") else None


def _token_outside(token_ids: list[int], vocab_size: int) -> int:
    """A token whose index list differs from ``token_ids``; PEFT ties modules with equal lists."""
    taken = set(token_ids)
    return next((token for token in range(vocab_size) if token not in taken), token_ids[0])


def _readme(k: int, role: str, base: str | None, names_head: bool) -> str:
    name = base or "the base model"
    if role == "tied":
        use = f"Load it onto {name} with tied embeddings: the output head follows the rows."
    elif names_head:
        use = (
            f"Load it onto {name} as it is. The rows act on the input only: the head keeps its own,\n"
            "although both share one table. PEFT's merge_and_unload cannot split that table; merge with\n"
            "kslottery_fast.merge_rows instead."
        )
    else:
        use = (
            f"The rows act on the input only. If {name} has tied embeddings, call\n"
            "kslottery_fast.untie_output(model) before PeftModel.from_pretrained: on a tied model PEFT\n"
            "would change the output head as well."
        )
    return f"""# {k} token rows

An adapter that replaces {k} rows of the token embedding and nothing else.

{use}

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, path)
```

Or, without PEFT's copy of the table in every forward:

```python
from kslottery_fast.rows import load_adapter

model = load_adapter(base_model, path)
```
"""

"""What an adapter of rows needs to know about its model: names of modules, tied heads, and the role of the head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import OutputRole

from .adapter_format import StoredRows
from .overlay import RowEmbedding
from .tables import is_tied, table_users
from .token_ids import check_token_ids


def head_role(folder: Path, stored: StoredRows, model: nn.Module, head: Any) -> OutputRole:
    """What the head is to do about the rows of an adapter."""
    if head is not None and stored.head_ids is not None and stored.head_ids != stored.ids:
        # The head has rows of its own. In the adapters of this package they are pinned to the base. Any others are no
        # set of rows for the input.
        own = head.weight.detach()[check_token_ids(stored.head_ids, len(head.weight), f"{folder}: indices of the head")]
        if stored.head_values is None or not torch.equal(stored.head_values.to(own), own):
            raise InputError(f"{folder} has other rows for the head than the base model; load it with PEFT")
        return "frozen"
    output = stored.role or ("tied" if is_tied(model) else "frozen")
    if stored.head_values is not None and not torch.equal(stored.head_values, stored.values):
        raise InputError(f"{folder} holds different rows for the head; load it with PEFT")
    if (output == "tied" or stored.head_values is not None) and not is_tied(model):
        raise InputError(f"{folder} changes the head too, but this model is not tied; load it onto the tied base")
    return cast(OutputRole, output)


def tied_heads(owner: Any, embedding: RowEmbedding, names: dict[int, str], role: str, base: str) -> list[Any]:
    """The heads that the adapter has to name, since PEFT takes them for tied."""
    if base == "untied":
        if role == "tied":
            raise InputError("base='untied' does not fit rows that the head follows; save them with base='auto'")
        return []
    heads: list[Any] = list(table_users(owner, embedding.weight)[1])
    if not heads and says_tied(owner):
        # Not tied, but PEFT goes by the config. A model without a head, such as BertModel, has the same config.
        heads = [head for head in (output_head(owner),) if head is not None]
    for head in heads:
        if getattr(head, "bias", None) is not None:
            raise InputError(
                f"the head {names[id(head)]} has a bias, which PEFT drops when it wraps a tied head; "
                "attach the rows with output='frozen', save with base='untied', load onto untie_output(base model)"
            )
    return heads


def base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of the model that PEFT may have wrapped, with their names in the unwrapped model."""
    base = next(module for module in model.modules() if not type(module).__module__.startswith("peft."))
    return [(name.replace(".base_layer", ""), module) for name, module in base.named_modules()]


def says_tied(model: nn.Module) -> bool:
    """Whether the config calls the model tied, which PEFT goes by."""
    return bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))


def output_head(model: nn.Module) -> Any:
    """The module that gives the logits, or None."""
    return cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


@dataclass(frozen=True)
class ModelKind:
    """What PEFT's Auto classes need to know to load the base model of an adapter.

    Attributes
    ----------
    task_type : str or None
        PEFT's name for the kind of model: "CAUSAL_LM", "SEQ_2_SEQ_LM", or None for any other.
    base_class : type or None
        The class of transformers that the model has.
    """

    task_type: str | None
    base_class: type[nn.Module] | None

    def mapping(self) -> dict[str, Any]:
        """What AutoPeftModel goes by if there is no task type."""
        if self.task_type is not None or self.base_class is None:
            return {}
        names = {"base_model_class": self.base_class.__name__, "parent_library": self.base_class.__module__}
        return {"auto_mapping": names}

    def loader(self) -> str:
        """The class of transformers that loads the base model."""
        if self.task_type is None:
            return self.base_class.__name__ if self.base_class is not None else "AutoModel"
        return {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}.get(
            self.task_type, "AutoModel"
        )


def kind_of(model: nn.Module) -> ModelKind:
    """What an adapter says about the kind of its model.

    PEFT has wrappers for a few kinds. Their forward and their Auto classes fit a causal model that
    AutoModelForCausalLM loads, and an encoder-decoder model of text that AutoModelForSeq2SeqLM loads. Models that
    listen or see (Whisper, LLaVA) and models without a head get none. AutoPeftModel then goes by the class.
    """
    config = getattr(model, "config", None)
    if config is None:
        return ModelKind(None, None)
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):  # code that came with the model
        return ModelKind("CAUSAL_LM", None)
    from transformers.models.auto import modeling_auto

    classes = [each for each in type(model).__mro__ if each.__module__.startswith("transformers.models.")]
    if not classes:
        return ModelKind("CAUSAL_LM" if hasattr(model, "generate") else None, None)
    lists = {
        "CAUSAL_LM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "SEQ_2_SEQ_LM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    reads_text = getattr(model, "main_input_name", "input_ids") == "input_ids"
    for task_type, names in lists.items():
        known: Any = names.get(getattr(config, "model_type", ""), ())
        if reads_text and classes[0].__name__ in ((known,) if isinstance(known, str) else known):
            return ModelKind(task_type, classes[0])
    return ModelKind(None, classes[0])


def token_outside(token_ids: list[int], vocab_size: int) -> int:
    """A token whose index list differs from ``token_ids``, since PEFT ties modules with equal lists."""
    taken = set(token_ids)
    return next((token for token in range(vocab_size) if token not in taken), token_ids[0])

"""What an adapter of rows needs to know about its model: the names of its modules, and what kind of model it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


def base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of the model that PEFT may have wrapped, with their names in the unwrapped model."""
    base = next(module for module in model.modules() if not type(module).__module__.startswith("peft."))
    return [(name.replace(".base_layer", ""), module) for name, module in base.named_modules()]


def says_tied(model: nn.Module) -> bool:
    """Whether the config calls the model tied, which PEFT goes by."""
    return bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))


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

"""The kinds of adapters that experiments compare rows with, through PEFT."""

from .adapter_kind import AdapterKind, check_peft, original_again
from .lora import Lora, plan_lora
from .prefix_tuning import Prefix, PrefixedModel, keys_and_values

__all__ = [
    "LORA",
    "PREFIX",
    "AdapterKind",
    "Lora",
    "Prefix",
    "PrefixedModel",
    "check_peft",
    "keys_and_values",
    "original_again",
    "plan_lora",
]

LORA, PREFIX = Lora(), Prefix()

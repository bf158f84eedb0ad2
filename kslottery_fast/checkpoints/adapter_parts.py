"""What a PEFT adapter on disk changes: rows, low-rank products and whole tensors, by module of the base model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json

from .tensors import StoredTensor

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MODELS = ("model*.safetensors*", "pytorch_model*")
"""The files of a model, beside which an adapter is not what the folder is named for."""
_PREFIX = "base_model.model."
_KINDS = ("LORA", "TRAINABLE_TOKENS", "KSLOTTERY_ROWS")
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
)
"""Settings of a LoRA config under which the weight is not the base's plus B A."""
_ENDS = re.compile(
    r"\.(?P<end>(?:token_adapter\.)?trainable_tokens_delta|trained_bias"
    r"|lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B"
    r"|(?:(?:base_layer|modules_to_save)\.)?(?P<tensor>weight|bias))$"
)


@dataclass
class Part:
    """What an adapter does to one module.

    Attributes
    ----------
    whole : dict of str to StoredTensor
        Tensors that replace those of the module, "weight" or "bias".
    factors : dict of str to StoredTensor
        The matrices of a low-rank product by the end of their name, such as "lora_A.weight".
    scale : float
        What the product is multiplied by.
    rows : StoredTensor, optional
        Rows of the weight, [k, d].
    ids : list of int
        Which rows these are. The entries of ``bias`` have the same places.
    bias : StoredTensor, optional
        [k], entries of the bias.
    """

    whole: dict[str, StoredTensor]
    factors: dict[str, StoredTensor]
    scale: float = 1.0
    rows: StoredTensor | None = None
    ids: Sequence[int] = ()
    bias: StoredTensor | None = None

    def product(self, shape: tuple[int, ...], fan_in_fan_out: bool) -> tuple[Tensor, Tensor] | None:
        """The two matrices, float32, whose product is added to a weight of this shape. None if they do not fit it."""
        factors = {end: whole(tensor).float() for end, tensor in self.factors.items()}
        if factors.keys() == {"lora_embedding_A", "lora_embedding_B"}:  # [r, V] and [d, r]
            left, right = factors["lora_embedding_A"].T, factors["lora_embedding_B"].T
        elif factors.keys() == {"lora_A.weight", "lora_B.weight"}:  # [r, in] and [out, r]
            left, right = factors["lora_B.weight"], factors["lora_A.weight"]
            square = len(shape) == 2 and shape[0] == shape[1]
            if fan_in_fan_out if square else (len(left), right.shape[-1]) == shape[::-1]:
                left, right = right.T, left.T  # the weight of a Conv1D is [in, out]
        else:
            return None
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            return None
        return (left.contiguous(), right * self.scale) if (len(left), right.shape[1]) == shape else None


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not any(any(folder.glob(each)) for each in MODELS)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an adapter.

    Raises
    ------
    InputError
        It is damaged, or the adapter is of a kind whose weights cannot be computed here.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG} is not the configuration of an adapter: expected a JSON object")
    kind = config.get("peft_type")
    variants = [name for name in _VARIANTS if config.get(name)]
    if kind not in _KINDS or variants:
        which = f"{kind} adapter" + (f" with {variants[0]}" if variants else "")
        raise InputError(
            f"{folder} is a {which}: expected LoRA or TrainableTokens; merge it into its base model "
            "(merge_and_unload of PEFT) and save that"
        )
    return config


def read_parts(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Part]:
    """Sort the tensors of an adapter by the modules that they change.

    Raises
    ------
    InputError
        A tensor has a name that is not understood, or the token ids of rows are missing.
    """
    parts: dict[str, Part] = {}
    for key in sorted(tensors):
        name, found = key.removeprefix(_PREFIX), _ENDS.search(key)
        if found is None:
            raise InputError(
                f"{folder} holds tensor {key}, which is no part of LoRA or TrainableTokens that is understood here; "
                "merge the adapter into its base model (merge_and_unload of PEFT) and save that"
            )
        end = found["end"]
        module = name[: len(name) - len(end) - 1]
        part = parts.setdefault(module, Part({}, {}))
        if end.endswith("trainable_tokens_delta"):
            part.rows = tensors[key]
        elif end == "trained_bias":
            part.bias = tensors[key]
        elif end.startswith("lora_"):
            part.factors[end] = tensors[key]
        else:
            part.whole[found["tensor"]] = tensors[key]
    for module, part in parts.items():
        if part.factors:
            part.scale = _scale(folder, module, part, config)
        if part.rows is not None or part.bias is not None:
            part.ids = _ids(folder, module, config)
    return parts


def _scale(folder: Path, module: str, part: Part, config: Mapping[str, Any]) -> float:
    """What PEFT multiplies B A by: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    first = part.factors.get("lora_A.weight", part.factors.get("lora_embedding_A"))
    rank = first.shape[0] if first is not None and first.shape else 0
    patterns = config.get("alpha_pattern") or {}
    try:
        fitting = [patterns[key] for key in patterns if re.match(rf"(.*\.)?({key})$", module)]
    except (re.error, TypeError):
        fitting = [None]
    alpha: Any = fitting[0] if fitting else config.get("lora_alpha")
    if type(alpha) not in (int, float) or not rank:
        raise InputError(f"{folder}: alpha {alpha!r} and rank {rank} of {module} give no scale; save the adapter again")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _ids(folder: Path, module: str, config: Mapping[str, Any]) -> list[int]:
    """The token ids of the rows of a module. A name in the config may be the end of the module's name."""
    found = config.get("token_indices" if config["peft_type"] == "TRAINABLE_TOKENS" else "trainable_token_indices")
    if isinstance(found, dict):
        found = next((ids for name, ids in found.items() if module == name or module.endswith("." + name)), None)
    if (
        not isinstance(found, list)
        or not found
        or not all(type(token) is int and 0 <= token < 1 << 63 for token in found)
    ):
        raise InputError(f"{folder / CONFIG} has no list of token ids for the rows of {module}; save the adapter again")
    if len(set(found)) < len(found):
        raise InputError(f"{folder / CONFIG} has a token id twice for the rows of {module}; save the adapter again")
    return found


def whole(tensor: StoredTensor) -> Tensor:
    """Read all numbers of a small tensor."""
    with tensor.opened() as reader:
        return reader.rows(0, tensor.height).clone().view(tensor.shape)

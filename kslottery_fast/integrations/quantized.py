"""Training rows of a quantized model: to the Trainer they count as an adapter, and the model stays as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import get_rows, has_rows

_ADAPTED = "_hf_peft_config_loaded"
"""The attribute that transformers sets on a model with adapters. Its Trainer wants it on a quantized model."""


@contextmanager
def as_adapted(model: nn.Module | None) -> Iterator[None]:
    """Make a quantized model with rows count as one with trainable adapters while a Trainer is built.

    The Trainer of transformers refuses to train a quantized model without adapters of PEFT. Inside the block the model
    is marked as having some. Any other model is left alone.

    Parameters
    ----------
    model : nn.Module or None
        The model of the Trainer, if there is one yet.

    Raises
    ------
    InputError
        transformers sends no gradients through this kind of quantization.
    """
    embedding = get_rows(model) if model is not None and has_rows(model) else None
    # The Trainer refuses a compiled quantized model with or without adapters.
    if embedding is None or not getattr(model, "is_quantized", False) or hasattr(model, "_orig_mod"):
        yield
        return
    _check_trainable(model)
    before = {key: value for key, value in vars(model).items() if key == _ADAPTED}
    parameters = [rows for row_set in embedding.row_sets.values() for rows in row_set.parameters()]
    values = [rows.data for rows in parameters]
    vars(model)[_ADAPTED] = True
    try:
        yield
    finally:
        del vars(model)[_ADAPTED]
        vars(model).update(before)
        # On a model of bitsandbytes, SFTTrainer casts everything that trains to bfloat16.
        for rows, value in zip(parameters, values, strict=True):
            if rows.dtype != value.dtype:
                rows.data = value.to(rows.device)


def _check_trainable(model: Any) -> None:
    quantizer = getattr(model, "hf_quantizer", None)
    if not getattr(quantizer, "is_trainable", False):
        config = getattr(quantizer, "quantization_config", None)
        method = getattr(config, "quant_method", "an unknown method")
        raise InputError(
            f"model is quantized with {getattr(method, 'value', method)}, and transformers does not send gradients "
            "through that; load the model in a floating-point dtype, or quantized with a method that trains, such as "
            "bitsandbytes"
        )

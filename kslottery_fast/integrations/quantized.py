"""Rows as what they are to a quantized model: an adapter that trains while the model stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import get_rows, has_rows
from kslottery_fast.rows.rowset import RowSet

_ADAPTED = "_hf_peft_config_loaded"
"""What transformers sets on a model that has adapters, and what its Trainer looks for on a quantized one."""


@contextmanager
def as_adapted(model: nn.Module | None) -> Iterator[None]:
    """While a Trainer is built: a quantized model with rows counts as one with trainable adapters.

    transformers' Trainer refuses to train a quantized model without adapters. It knows PEFT's, so the model says for
    that long that it has some. Any other model is left alone.

    Raises
    ------
    InputError : the quantization is one that transformers does not train through.
    """
    embedding = get_rows(model) if model is not None and has_rows(model) else None
    # A compiled quantized model is left to the Trainer, which refuses it with or without adapters.
    if embedding is None or not getattr(model, "is_quantized", False) or hasattr(model, "_orig_mod"):
        yield
        return
    _check_trainable(model)
    before = {key: value for key, value in vars(model).items() if key == _ADAPTED}
    parameters = [cast(RowSet, row_set).rows for row_set in embedding.row_sets.values()]
    values = [rows.data for rows in parameters]
    vars(model)[_ADAPTED] = True
    try:
        yield
    finally:
        del vars(model)[_ADAPTED]
        vars(model).update(before)
        # TRL's SFTTrainer makes everything that trains on a model of bitsandbytes bfloat16.
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

"""The attributes of tickets by name: what must hold between them, and their form as a JSON object."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.ticket_ids import (
    FORMAT,
    check_digest,
    check_format,
    digest_of,
    integers_of,
    is_int,
    texts_of,
)
from kslottery_fast.ks.null import METHODS
from kslottery_fast.ks.significance import CORRECTIONS, check_alpha

__all__ = [
    "ATTRIBUTES",
    "SETTINGS",
    "check_derived",
    "check_fields",
    "content_of",
    "digest_of",
    "fields_of",
    "integers",
    "tuple_of_texts",
]

SETTINGS = ("vocab_size", "dimension", "method", "correction", "selected_by", "alpha", "threshold_count")
_ROWS = ("token_ids", "counts")
_DERIVED = ("threshold", "statistic", "pvalue")
ATTRIBUTES = (*SETTINGS, "threshold", *_ROWS, "statistic", "pvalue")
"""The attributes that a file holds, in its order."""


def content_of(attributes: Mapping[str, Any], texts: tuple[str, ...] | None) -> dict[str, Any]:
    """Make the JSON object of all :data:`ATTRIBUTES`, without its digest."""
    content = {"format": FORMAT, **{name: _plain(attributes[name]) for name in ATTRIBUTES}}
    return content if texts is None else {**content, "tokens": list(texts)}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def fields_of(data: Any) -> dict[str, Any]:
    """Return the constructor's arguments from a parsed file, and check what the constructor cannot check."""
    check_format(data)
    keys = ("format", *ATTRIBUTES, "digest")
    missing = [key for key in keys if key not in data]
    foreign = [key for key in data if key not in (*keys, "tokens")]
    if missing or foreign:
        raise InputError(f"missing {', '.join(missing)}" if missing else f"unknown key {foreign[0]!r}")
    rows, texts = {key: integers_of(data, key) for key in _ROWS}, texts_of(data)
    return {**{key: data[key] for key in SETTINGS}, **rows, "token_texts": texts}


def check_derived(data: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Check the digest of a file, and the numbers that follow from others, against the computed ``attributes``."""
    check_digest(data)
    for key in _DERIVED:
        stored = [data[key]] if key == "threshold" else data[key]
        if not isinstance(stored, list) or not all(_is_number(v) for v in stored):
            raise InputError(f"{key} must be {'a number' if key == 'threshold' else 'a list of numbers'}")
        expected = [attributes[key]] if key == "threshold" else attributes[key].tolist()
        # p-values may come from another version of scipy, so their last digits may differ. Nothing else may.
        tolerance = 1e-6 if key == "pvalue" else 0.0
        if len(stored) != len(expected) or not all(
            abs(a - b) <= tolerance * b for a, b in zip(stored, expected, strict=True)
        ):
            raise InputError(f"{key} does not follow from counts, dimension and method")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def integers(values: Any, name: str) -> Tensor:
    """Return integers of a sequence, array or tensor as int64 on the CPU. Nothing is rounded."""
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} is {shown(values)}: expected integers in a list, array or tensor") from None
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise InputError(f"{name} has dtype {tensor.dtype}: expected integers")
    return tensor.to(torch.int64)


def tuple_of_texts(values: Any) -> tuple[str, ...]:
    """Return the texts of tokens as a tuple."""
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"token_texts is {shown(values)}: expected a list of strings, or None")
    return tuple(values)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Check all that must hold between the arguments of the constructor. Each fault has its own message."""
    _check_settings(fields)
    ids, h, texts = fields["token_ids"], fields["counts"], fields["token_texts"]
    for name, values in (("token_ids", ids), ("counts", h)):
        if not isinstance(values, Tensor) or values.dtype != torch.int64 or values.ndim != 1:
            raise InputError(f"{name} must be an int64 tensor [k]")
    if len(ids) != len(h):
        raise InputError(f"counts has {len(h)} entries, token_ids {len(ids)}: expected one count per row")
    if texts is not None and len(tuple_of_texts(texts)) != len(ids):
        raise InputError(f"token_texts has {len(texts)} entries, token_ids {len(ids)}: expected one text per row")
    if len(ids):
        _check_rows(ids, h, fields["vocab_size"], fields["dimension"], fields["threshold_count"])


def _check_settings(fields: Mapping[str, Any]) -> None:
    for name in ("vocab_size", "dimension", "threshold_count"):
        value, least = fields[name], 0 if name == "vocab_size" else 1
        if not is_int(value) or value < least:
            raise InputError(f"{name} is {value!r}: expected an integer of at least {least}")
    d, threshold = fields["dimension"], fields["threshold_count"]
    if threshold > d + 1:
        rows = f"rows of {d} number{'' if d == 1 else 's'}"
        raise InputError(f"threshold_count is {threshold}: expected 1..{d + 1} for {rows}")
    for name, choices in (
        ("method", METHODS),
        ("correction", CORRECTIONS),
        ("selected_by", ("alpha", "top_k")),
    ):
        if fields[name] not in choices:
            raise InputError(f"{name} is {fields[name]!r}: expected one of {list(choices)}")
    if fields["alpha"] is not None:
        try:
            check_alpha(fields["alpha"])
        except TypeError as error:
            raise InputError(str(error)) from None
    elif fields["selected_by"] == "alpha":
        raise InputError("alpha is None, but selected_by is 'alpha'")


def _check_rows(ids: Tensor, h: Tensor, V: int, d: int, threshold: int) -> None:
    if int(ids.min()) < 0 or int(ids.max()) >= V:
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise InputError(f"token_ids holds {bad}, outside a table of {V} rows")
    if len(torch.unique(ids)) != len(ids):
        raise InputError("token_ids holds a row twice")
    if int(h.min()) < threshold or int(h.max()) > d:
        bad = int(h.max()) if int(h.max()) > d else int(h.min())
        raise InputError(f"counts holds {bad}: tickets here have {threshold} <= h <= {d}")
    falling = (h[:-1] > h[1:]) | ((h[:-1] == h[1:]) & (ids[:-1] < ids[1:]))
    if not bool(falling.all()):
        raise InputError("token_ids must be sorted by falling count, then rising id")

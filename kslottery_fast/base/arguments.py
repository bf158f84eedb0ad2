"""Checks at the public doors: a wrong argument is refused there, by its name, before anything reads it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from .errors import InputError


def shown(value: object) -> str:
    """A value for an error message: its type, and its text where that is short.

    >>> shown("gpt2"), shown(None), shown([1, 2]), shown(list(range(1000)))
    ("the str 'gpt2'", 'None', 'the list [1, 2]', 'a list')
    """
    if value is None:
        return "None"
    kind = type(value).__name__
    text = repr(value) if isinstance(value, (str, bytes, int, float, list, tuple, dict, set)) else ""
    if text and len(text) <= 60:
        return f"the {kind} {text}"
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def check_model(value: Any, name: str = "model") -> Any:
    """Return a model, typed as it came.

    Raises
    ------
    TypeError
        Not a ``torch.nn.Module``.

    >>> check_model("gpt2")
    Traceback (most recent call last):
    TypeError: model is the str 'gpt2': expected a model; load it first, with AutoModelForCausalLM.from_pretrained
    """
    if not isinstance(value, nn.Module):
        load = "; load it first, with AutoModelForCausalLM.from_pretrained" if isinstance(value, str) else ""
        raise TypeError(f"{name} is {shown(value)}: expected a model{load}")
    return value


def check_tokenizer(value: Any, name: str = "tokenizer") -> Any:
    """Return a tokenizer, typed as it came.

    Raises
    ------
    TypeError
        Without the methods of a transformers tokenizer that are used here.

    >>> check_tokenizer("gpt2")
    Traceback (most recent call last):
    TypeError: tokenizer is the str 'gpt2': expected a tokenizer; load it first, with AutoTokenizer.from_pretrained
    """
    if isinstance(value, type) or not (callable(value) and hasattr(value, "convert_ids_to_tokens")):
        load = "; load it first, with AutoTokenizer.from_pretrained" if isinstance(value, str) else ""
        raise TypeError(f"{name} is {shown(value)}: expected a tokenizer{load}")
    return value


def check_choice(value: Any, choices: Collection[Any], name: str) -> None:
    """Refuse an option that is not one of the choices.

    Raises
    ------
    InputError
        An unknown option.

    >>> check_choice("tide", ("auto", "frozen", "tied"), "output")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: output is the str 'tide': expected 'auto', 'frozen' or 'tied'
    """
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        *first, last = map(repr, choices)
        raise InputError(f"{name} is {shown(value)}: expected {', '.join(first)} or {last}")


def check_path(value: Any, name: str = "path", what: str = "the path of a file") -> Path:
    """Return a path.

    Raises
    ------
    TypeError
        Neither a str nor a path-like object.

    >>> check_path(3, "folder", "a model folder")
    Traceback (most recent call last):
    TypeError: folder is the int 3: expected a model folder
    """
    if not isinstance(value, (str, os.PathLike)) or isinstance(value, bytes):
        raise TypeError(f"{name} is {shown(value)}: expected {what}")
    return Path(value)

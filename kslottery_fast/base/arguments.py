"""Checks for public functions: a wrong argument is refused by its name, before anything is changed."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .errors import InputError

M = TypeVar("M", bound=nn.Module)
"""The type of a model: functions that return their model return it typed as it came."""


def shown(value: object) -> str:
    """Describe a value for an error message by its type, and by its text if that is short.

    Examples
    --------
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


def check_model(value: M, name: str = "model") -> M:
    """Return a model, typed as it came.

    Raises
    ------
    TypeError
        The value is not a ``torch.nn.Module``.

    Examples
    --------
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
        The value lacks the methods of a transformers tokenizer that are used here.

    Examples
    --------
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
        The option is unknown.

    Examples
    --------
    >>> check_choice("tide", ("auto", "frozen", "tied"), "output")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: output is the str 'tide': expected 'auto', 'frozen' or 'tied'
    """
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        *first, last = map(repr, choices)
        raise InputError(f"{name} is {shown(value)}: expected {', '.join(first)} or {last}")


def check_flag(value: Any, name: str) -> None:
    """Refuse what is neither True nor False.

    Raises
    ------
    TypeError
        The value is not a bool. Numbers and strings do not count as bools.

    Examples
    --------
    >>> check_flag("no", "freeze")
    Traceback (most recent call last):
    TypeError: freeze is the str 'no': expected True or False
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}: expected True or False")


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Refuse what is not an integer of at least ``least``.

    Raises
    ------
    InputError
        The integer is too small.
    TypeError
        The value is not an integer. A bool does not count as an integer.

    Examples
    --------
    >>> check_count(0, "copies")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: copies is 0: expected at least 1
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {shown(value)}: expected an integer of at least {least}")
    if value < least:
        raise InputError(f"{name} is {value}: expected at least {least}")


def check_path(value: Any, name: str = "path", what: str = "a path, as a str or pathlib.Path") -> Path:
    """Return the path that a str or PathLike names.

    Raises
    ------
    InputError
        The string is empty.
    TypeError
        The value is not a path.

    Examples
    --------
    >>> check_path(3, "output")
    Traceback (most recent call last):
    TypeError: output is the int 3: expected a path, as a str or pathlib.Path
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} is {shown(value)}: expected {what}")
    if not os.fspath(value):
        raise InputError(f"{name} is empty: expected {what}")
    return Path(value)

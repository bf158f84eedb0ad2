"""Checks for public functions: a wrong argument is refused by its name, before anything is changed."""

import numbers
import operator
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import InputError

if TYPE_CHECKING:
    from torch import nn  # at run time not: reading a corpus checks its arguments without torch

M = TypeVar("M", bound="nn.Module")
"""The type of a model: functions that return their model return it typed as it came."""

_LONGEST = 60  # characters of a value in a message


def shown(value: object) -> str:
    """Describe a value for an error message: text and numbers as they are, anything else by its type.

    Examples
    --------
    >>> shown("gpt2"), shown(0.5), shown(None), shown([1, 2]), shown(list(range(1000)))
    ("'gpt2'", '0.5', 'None', 'the list [1, 2]', 'a list')
    """
    if value is None:
        return "None"
    plain = isinstance(value, (str, numbers.Number))
    text = repr(value) if plain or isinstance(value, (bytes, list, tuple, dict, set)) else ""
    if text and len(text) <= _LONGEST:
        return text if plain else f"the {type(value).__name__} {text}"
    return with_article(type(value).__name__)


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article.

    Examples
    --------
    >>> with_article("str"), with_article("Evaluation")
    ('a str', 'an Evaluation')
    """
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


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
    TypeError: model is 'gpt2': expected a model; load it first, with AutoModelForCausalLM.from_pretrained
    """
    from torch import nn

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
    TypeError: tokenizer is 'gpt2': expected a tokenizer; load it first, with AutoTokenizer.from_pretrained
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
    kslottery_fast.base.errors.InputError: output is 'tide': expected 'auto', 'frozen' or 'tied'
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
    TypeError: freeze is 'no': expected True or False
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}: expected True or False")


def check_integer(value: Any, name: str, least: int | None = None) -> int:
    """Return an integer that is at least ``least``.

    Raises
    ------
    InputError
        The integer is too small.
    TypeError
        The value is not an integer. Neither a bool nor 3.0 counts as one. An integer of numpy does.

    Examples
    --------
    >>> check_integer(0, "copies", 1)
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: copies is 0: expected at least 1
    """
    bound = "" if least is None else f" of at least {least}"
    try:
        integer = operator.index(value)
    except TypeError:
        integer = None
    if integer is None or isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}: expected an integer{bound}")
    if least is not None and integer < least:
        raise InputError(f"{name} is {integer}: expected at least {least}")
    return integer


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
    TypeError: output is 3: expected a path, as a str or pathlib.Path
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} is {shown(value)}: expected {what}")
    if not os.fspath(value):
        raise InputError(f"{name} is empty: expected {what}")
    return Path(value)

"""Checks of what a file holds: files that this package wrote may have been damaged or edited since."""

import contextlib
import os
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from .arguments import shown
from .errors import InputError

if TYPE_CHECKING:
    import torch

_SHOWN = 200  # characters of what an error says
REMEDY = "restore it or create it again"


@contextlib.contextmanager
def checked_content(path: str | os.PathLike[str], remedy: str = REMEDY) -> Iterator[None]:
    """Turn whatever the content of a file raises in the block into an InputError that names the file.

    Parameters
    ----------
    path : str or path
        The file.
    remedy : str
        What to do if it is damaged.

    Raises
    ------
    InputError
        The block raised an error that unexpected content causes.

    Examples
    --------
    >>> with checked_content("a.json"):
    ...     {"seconds": 3}["stage"]
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: a.json is damaged (KeyError: 'stage'); restore it or create it again
    """
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:_SHOWN]
        raise InputError(f"{path} is damaged ({type(error).__name__}: {text}); {remedy}") from None


def check_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, "torch.Tensor"], forms: Mapping[str, str], remedy: str = REMEDY
) -> None:
    """Refuse the tensors of a file if one is missing or has another form.

    Parameters
    ----------
    path : str or path
        The file.
    tensors : mapping of str to torch.Tensor
        What it holds.
    forms : mapping of str to str
        The form of each tensor that is needed: "int" (int64) or "float" (of any size), and the name of each dimension.
        Dimensions of one name have one size.
    remedy : str
        What to do if the file is damaged.

    Raises
    ------
    InputError
        A tensor is missing, or is of another form.

    Examples
    --------
    >>> import torch
    >>> forms = {"token_ids": "int k", "rows": "float k d"}
    >>> check_tensors("a.safetensors", {"token_ids": torch.arange(3), "rows": torch.ones(3, 5)}, forms)
    >>> check_tensors("a.safetensors", {"token_ids": torch.arange(3), "rows": torch.ones(2, 5)}, forms)
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: a.safetensors is damaged: rows is float32 [2, 5] with k = 3, expected float
    [k, d]; restore it or create it again
    """
    import torch

    sizes: dict[str, int] = {}
    for name, form in forms.items():
        kind, *dimensions = form.split()
        tensor = tensors.get(name)
        if tensor is None:
            raise InputError(f"{path} is damaged: it has no tensor {name}; {remedy}")
        right_kind = tensor.dtype == torch.int64 if kind == "int" else tensor.is_floating_point()
        known = [f"{each} = {sizes[each]}" for each in dimensions if each in sizes]
        fits = len(dimensions) == tensor.ndim and all(
            sizes.setdefault(each, size) == size for each, size in zip(dimensions, tensor.shape, strict=True)
        )
        if not right_kind or not fits:
            found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            with_sizes = f" with {', '.join(known)}" if known else ""
            wanted = f"{'int64' if kind == 'int' else 'float'} [{', '.join(dimensions)}]"
            raise InputError(f"{path} is damaged: {name} is {found}{with_sizes}, expected {wanted}; {remedy}")


def check_fields(made: Any) -> None:
    """Refuse a dataclass with fields of other types than it declares. JSON has no other way to say so.

    Parameters
    ----------
    made : dataclass
        An object whose fields came from JSON.

    Raises
    ------
    InputError
        A field has another type. The message names it.

    Examples
    --------
    >>> from dataclasses import make_dataclass
    >>> Point = make_dataclass("Point", [("x", float), ("names", list[str])])
    >>> check_fields(Point(3, ["a"]))
    >>> check_fields(Point(3, ["a", 4]))
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: names is the list ['a', 4]: expected list[str]
    """
    hints = get_type_hints(type(made))
    for each in fields(made):
        value, hint = getattr(made, each.name), hints[each.name]
        if not _fits(value, hint):
            raise InputError(f"{each.name} is {shown(value)}: expected {_words(hint)}")


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value of parsed JSON is of a type, as far as JSON knows types."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Literal:
        return isinstance(value, Hashable) and value in inside
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inside)
    if kind in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(each, inside[0]) for each in value)
    if kind is dict:
        pairs = value.items() if isinstance(value, dict) else [(None, None)]
        return all(_fits(key, inside[0]) and _fits(each, inside[1]) for key, each in pairs)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)

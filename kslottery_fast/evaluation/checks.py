"""Checks of arguments that the files of this package share. Each message begins with the name of the argument."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kslottery_fast.base.arguments import check_integer, check_path, shown, with_article
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import Tensors, read_safetensors

T = TypeVar("T")


def load_kind(path: Any, kind: str, names: Iterable[str], expected: str) -> tuple[Path, Tensors]:
    """Read a safetensors file of one kind, which holds the tensors ``names``.

    Parameters
    ----------
    path : str or path
        The file.
    kind : str
        What its metadata says that it is.
    names : iterable of str
        The names of its tensors.
    expected : str
        What the message says that another file does not hold, and who writes it.

    Raises
    ------
    InputError
        The file is missing or damaged, or holds something else.
    """
    path = check_path(path, "path")
    tensors = read_safetensors(path, remedy="make it again")
    if tensors.metadata.get("kind") != kind or set(tensors) != set(names):
        raise InputError(f"{path} holds no {expected}")
    return path, tensors


def check_share(value: Any, name: str = "confidence") -> float:
    """Return a number strictly between 0 and 1.

    Raises
    ------
    TypeError
        The value is not a number.
    InputError
        It is out of range.

    Examples
    --------
    >>> check_share(95)
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: confidence is 95: expected a number strictly between 0 and 1, e.g. 0.95
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {shown(value)}: expected a number strictly between 0 and 1, e.g. 0.95")
    if not 0 < float(value) < 1:  # False for NaN, too
        raise InputError(f"{name} is {value}: expected a number strictly between 0 and 1, e.g. 0.95")
    return float(value)


def check_bootstrap(n_bootstrap: Any, seed: Any) -> None:
    """Refuse what cannot be a number of resamples or a seed.

    Raises
    ------
    TypeError
        One of them is not an integer.
    InputError
        One of them is too small.

    Examples
    --------
    >>> check_bootstrap(1000, -1)
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: seed is -1: expected at least 0
    """
    check_integer(n_bootstrap, "n_bootstrap", 1)
    check_integer(seed, "seed", 0)


def check_callable(value: Any, name: str, takes: str) -> None:
    """Refuse what cannot be called.

    Raises
    ------
    TypeError
        The value is not callable.

    Examples
    --------
    >>> check_callable(5, "score", "the sums over sentences")
    Traceback (most recent call last):
    TypeError: score is 5: expected a function of the sums over sentences
    """
    if not callable(value) or isinstance(value, torch.nn.Module) or hasattr(value, "convert_ids_to_tokens"):
        raise TypeError(f"{name} is {shown(value)}: expected a function of {takes}")


def check_progress(progress: Any) -> None:
    """Refuse a ``progress`` that is neither None nor callable.

    Raises
    ------
    TypeError
        The value is neither.

    Examples
    --------
    >>> check_progress(True)
    Traceback (most recent call last):
    TypeError: progress is True: expected a function of (done, total), or None
    """
    if progress is not None:
        check_callable(progress, "progress", "(done, total), or None")


def check_instance(value: Any, kind: type[T], name: str, remedy: str = "") -> T:
    """Return a value of the expected type.

    Raises
    ------
    TypeError
        The value has another type.

    Examples
    --------
    >>> check_instance(None, str, "prompt")
    Traceback (most recent call last):
    TypeError: prompt is None: expected a str
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {shown(value)}: expected {with_article(kind.__name__)}{remedy}")
    return value


def check_list(value: Any, kind: type[T], name: str, remedy: str = "", *, empty: bool = False) -> list[T]:
    """Return the items of a list, tuple or other sized collection of values of one type.

    Parameters
    ----------
    value : Any
        What the caller gave.
    kind : type
        The type of every item.
    name : str
        The name of the argument.
    remedy : str
        What the messages say at their end.
    empty : bool
        Whether there may be no items.

    Raises
    ------
    TypeError
        The value is not such a collection. A generator is not accepted, since it can be read only once.
    InputError
        It has no items.

    Examples
    --------
    >>> check_list("ab", str, "prompts", ", e.g. ['English: house']")
    Traceback (most recent call last):
    TypeError: prompts is 'ab': expected a list of str, e.g. ['English: house']
    >>> check_list([], str, "prompts")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: prompts is empty: give at least one str
    """
    if not _is_collection(value):
        raise TypeError(f"{name} is {shown(value)}: expected a list of {kind.__name__}{remedy}")
    items = list(value)
    for i, item in enumerate(items):
        check_instance(item, kind, f"{name}[{i}]", remedy)
    if not (items or empty):
        raise InputError(f"{name} is empty: give at least one {kind.__name__}{remedy}")
    return items


def check_alphas(alphas: Any) -> list[float]:
    """Return significance levels, each strictly between 0 and 1.

    Raises
    ------
    TypeError
        ``alphas`` is not a list of numbers.
    InputError
        There is no level, or one out of range.

    Examples
    --------
    >>> check_alphas(0.05)
    Traceback (most recent call last):
    TypeError: alphas is 0.05: expected a list of numbers strictly between 0 and 1, e.g. [0.05]
    """
    expected = "numbers strictly between 0 and 1, e.g. [0.05]"
    levels = list(alphas) if _is_collection(alphas) else None
    if levels is None or any(isinstance(alpha, bool) or not isinstance(alpha, Real) for alpha in levels):
        raise TypeError(f"alphas is {shown(alphas)}: expected a list of {expected}")
    if not levels or not all(0 < alpha < 1 for alpha in levels):
        raise InputError(f"alphas is {shown(levels)}: expected one or more {expected}")
    return [float(alpha) for alpha in levels]


def check_batches(batches: Any) -> list[Mapping[str, torch.Tensor]]:
    """Return batches, each a mapping that holds the tensors ``input_ids`` and ``labels``.

    Raises
    ------
    TypeError
        ``batches`` is a single batch, a generator, or no collection of mappings of tensors.
    InputError
        There is no batch, or one without ``input_ids`` or ``labels``.

    Examples
    --------
    >>> check_batches({"input_ids": 0})
    Traceback (most recent call last):
    TypeError: batches is the dict {'input_ids': 0}: expected a list of batches, each a mapping
    with the tensors input_ids and labels
    >>> check_batches([])
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: batches is empty: give at least one batch with input_ids and labels
    """
    expected = "expected a list of batches, each a mapping with the tensors input_ids and labels"
    if not _is_collection(batches):
        raise TypeError(f"batches is {shown(batches)}: {expected}")
    found: list[Mapping[str, torch.Tensor]] = list(batches)
    if not found:
        raise InputError("batches is empty: give at least one batch with input_ids and labels")
    for i, batch in enumerate(found):
        if not isinstance(batch, Mapping):
            raise TypeError(f"batches[{i}] is {shown(batch)}: {expected}")
        for name in ("input_ids", "labels"):
            if name not in batch:
                raise InputError(f"batches[{i}] has no {name!r}: {expected}")
        for name, tensor in batch.items():
            if not torch.is_tensor(tensor):
                raise TypeError(f"batches[{i}][{name!r}] is {shown(tensor)}: expected a tensor")
    return found


def check_table(value: ArrayLike, name: str, shape: str, dimensions: int) -> NDArray[Any]:
    """Return numbers as an array with a given number of dimensions, none of which is empty.

    Raises
    ------
    InputError
        The values are not numbers, or the array has another shape. The message names ``shape``.

    Examples
    --------
    >>> check_table([1, 2], "statistics", "[sentences, statistics]", 2)
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: statistics has the shape (2,): expected numbers [sentences, statistics], one
    sentence or more
    """
    try:
        table = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array: {error}; expected numbers {shape}") from None
    if table.ndim == 0 or (table.size and table.dtype.kind not in "biuf"):
        raise InputError(f"{name} is {shown(value)}: expected numbers {shape}")
    if table.ndim != dimensions or 0 in table.shape:
        raise InputError(f"{name} has the shape {table.shape}: expected numbers {shape}, one sentence or more")
    return table


def check_mapping(value: Any, kind: type[T], name: str) -> Mapping[str, T]:
    """Return a mapping of names to values of one type.

    Raises
    ------
    TypeError
        The value is not such a mapping.

    Examples
    --------
    >>> check_mapping([1], float, "scores")
    Traceback (most recent call last):
    TypeError: scores is the list [1]: expected a mapping of str to float
    """
    fits = isinstance(value, Mapping) and all(
        isinstance(key, str) and isinstance(one, kind) for key, one in value.items()
    )
    if not fits:
        raise TypeError(f"{name} is {shown(value)}: expected a mapping of str to {kind.__name__}")
    result: Mapping[str, T] = value
    return result


def check_same_length(first: Sequence[Any], second: Sequence[Any], names: tuple[str, str]) -> None:
    """Refuse two lists that should have one item for each other and do not.

    Raises
    ------
    InputError
        The lengths differ.

    Examples
    --------
    >>> check_same_length([1], [], ("hypotheses", "references"))
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: hypotheses has 1 items and references has 0: expected the same number of both
    """
    if len(first) != len(second):
        a, b = names
        raise InputError(f"{a} has {len(first)} items and {b} has {len(second)}: expected the same number of both")


def _is_collection(value: Any) -> bool:
    """Whether a value can be read item by item, more than once, and is neither a text nor a mapping."""
    if isinstance(value, (str, bytes, Mapping)) or (torch.is_tensor(value) and value.ndim == 0):
        return False
    return isinstance(value, Sized) and isinstance(value, Iterable)

"""Former names of arguments, which still work."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import ParamSpec, TypeVar

from kslottery_fast.base.caller import warn_caller

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def renamed(
    names: Mapping[str, str], *, silently: Collection[str] = ()
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Let a function take arguments by their former names too, with a DeprecationWarning.

    Parameters
    ----------
    names : mapping of str to str
        The current name for each former name.
    silently : collection of str
        Former names that give no warning.

    Examples
    --------
    >>> @renamed({"x": "data"})
    ... def first(data):
    ...     return data[0]
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     first(x=[3, 4])
    3
    >>> str(caught[0].message)
    'first() takes data now, which was called x: the former name will be removed in a later version'
    """

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        @functools.wraps(function)
        def wrapper(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            for former, now in names.items():
                if former not in kwargs:
                    continue
                if now in kwargs:
                    raise TypeError(
                        f"{function.__name__}() got multiple values for argument now known as `{now}`: "
                        f"{former} and {now} are two names of one argument"
                    )
                if former not in silently:
                    warn_caller(
                        f"{function.__name__}() takes {now} now, which was called {former}: the former name will be "
                        "removed in a later version",
                        DeprecationWarning,
                    )
                kwargs[now] = kwargs.pop(former)
            return function(*args, **kwargs)

        return wrapper

    return decorate

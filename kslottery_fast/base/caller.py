"""Warnings that point at the user's line, however many calls of this package, torch and transformers lie in between."""

import sys
import warnings

_LIBRARIES = ("accelerate", "contextlib", "functools", "kslottery_fast", "peft", "torch", "transformers", "trl")


def warn_caller(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the line outside this package, and outside the libraries that call it, that led here.

    Examples
    --------
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_caller("no row is selected")
    >>> caught[0].category.__name__, str(caught[0].message)
    ('RuntimeWarning', 'no row is selected')
    """
    warnings.warn(message, category, stacklevel=_outside())


def _outside() -> int:
    """The ``stacklevel`` of the user's innermost frame. Without such a frame, that of the caller of this module."""
    frame, level = sys._getframe(2), 2
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            return level
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    return 3

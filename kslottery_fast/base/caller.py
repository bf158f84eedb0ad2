"""Warnings that point at the caller's line, however deep below that line they arise."""

import sys
import warnings

_LIBRARIES = ("accelerate", "contextlib", "functools", "kslottery_fast", "torch", "transformers", "trl")


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the program that called this package, directly or through a library that calls back.

    A fixed ``stacklevel`` would point into a decorator, or into the Trainer that runs a callback.

    Parameters
    ----------
    message : str
        The text of the warning.
    category : type of Warning
        Its class.

    Warns
    -----
    category
        Always.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )

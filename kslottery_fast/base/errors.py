"""Errors that a person can act on. Every module may import this file, and it imports nothing of the package."""

import re

_LONGEST, _HEAD, _TAIL = 1200, 800, 300  # characters: a damaged file may hold a name of any length
_LONG_WORD = re.compile(r"(\S{120})\S{21,}(\S{60})")
_CONTROLS: dict[int, str] = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | dict.fromkeys(
    b"\t\n\r", " "
)
"""A name in a damaged file may also hold what a terminal would obey."""


class InputError(ValueError):
    """Bad input. The message names the argument, what was given, what was expected, and the remedy.

    The command line prints the message as one line and exits with code 2.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> import torch
    >>> attach_rows(torch.nn.Embedding(10, 4), [])
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: token_ids is empty; give at least one token id
    """

    def __init__(self, message: str) -> None:
        message = message.translate(_CONTROLS)
        if len(message) > _LONGEST:  # so that the argument and the remedy, which are around a long name, are kept
            message = _LONG_WORD.sub(r"\1...\2", message)
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_HEAD]} ... {message[-_TAIL:]}")


class DivergedError(InputError):
    """A training diverged: a loss, a gradient, a row or a probability is NaN or infinite."""

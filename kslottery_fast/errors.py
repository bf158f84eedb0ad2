"""The name of :mod:`kslottery_fast.base.errors` in version 0.1, for programs that import it."""

from kslottery_fast.base.errors import InputError

__all__ = ["InputError"]

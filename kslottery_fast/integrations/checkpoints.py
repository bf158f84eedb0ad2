"""The name of :mod:`kslottery_fast.tickets.stored` in version 0.1, kept for programs that import it."""

from kslottery_fast.tickets.stored import ks_select_checkpoints

__all__ = ["ks_select_checkpoints"]

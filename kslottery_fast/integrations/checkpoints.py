"""The import path of version 0.1, kept for compatibility. Import from :mod:`kslottery_fast` instead."""

from kslottery_fast.tickets.stored import ks_select_checkpoints

__all__ = ["ks_select_checkpoints"]

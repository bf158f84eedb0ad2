"""The distributed names of version 0.1, kept for programs that import them.

:mod:`kslottery_fast.rows` and :mod:`kslottery_fast.tickets` are their homes.
"""

from kslottery_fast.rows.distributed import gather_rows, replicate_rows
from kslottery_fast.tickets.sharded import ks_select_sharded

__all__ = ["gather_rows", "ks_select_sharded", "replicate_rows"]

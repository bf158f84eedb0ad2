"""The import path of version 0.1, kept for compatibility.

Import from :mod:`kslottery_fast.rows` and :mod:`kslottery_fast.tickets` instead.
"""

from kslottery_fast.rows.distributed import gather_rows, replicate_rows
from kslottery_fast.tickets.sharded import ks_select_sharded

__all__ = ["gather_rows", "ks_select_sharded", "replicate_rows"]

"""Selecting the rows that fine-tuning moved, in tables in memory, attached rows, checkpoints and sharded tables."""

from .attached import ks_select_rows
from .comparison import TableComparison, compare_checkpoints, compare_tables
from .select import ks_select, select_tickets
from .selected_rows import SelectedRows
from .selectors import select_rows
from .sharded import ks_select_sharded
from .stored import ks_select_checkpoints, l2_select_checkpoints
from .tables import ks_statistics
from .tickets import Tickets

__all__ = [
    "SelectedRows",
    "TableComparison",
    "Tickets",
    "compare_checkpoints",
    "compare_tables",
    "ks_select",
    "ks_select_checkpoints",
    "ks_select_rows",
    "ks_select_sharded",
    "ks_statistics",
    "l2_select_checkpoints",
    "select_rows",
    "select_tickets",
]

"""Where pickles of version 0.1 look for what :mod:`kslottery_fast.rows.rowset` holds."""

from kslottery_fast.rows.rowset import Mixture, RowSet, RowSets

__all__ = ["Mixture", "RowSet", "RowSets"]

"""The options of a selection, as types."""

from typing import Literal, TypeAlias

from kslottery_fast.ks.options import Correction, Method, ResolvedMethod

__all__ = ["Correction", "Method", "ResolvedMethod", "SelectedBy"]

SelectedBy: TypeAlias = Literal["alpha", "top_k"]
"""What decided which rows are tickets."""

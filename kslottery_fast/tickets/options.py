"""The options of a selection, as types."""

from typing import Literal, TypeAlias

Method: TypeAlias = Literal["auto", "exact", "asymp", "paper"]
"""How p is computed. "auto" chooses "exact" or "asymp" by the size of the samples."""
ResolvedMethod: TypeAlias = Literal["exact", "asymp", "paper"]
"""How p was computed."""
Correction: TypeAlias = Literal["bonferroni", "bh"]
"""How alpha is corrected for the number of tests."""
SelectedBy: TypeAlias = Literal["alpha", "top_k"]
"""What decided which rows are tickets."""

"""Types of options that the functions of several packages share."""

from typing import Literal, TypeAlias

Method: TypeAlias = Literal["auto", "exact", "asymp", "paper"]
"""How p-values come from counts, as :func:`kslottery_fast.ks.pvalues` explains."""

ResolvedMethod: TypeAlias = Literal["exact", "asymp", "paper"]
"""A method with "auto" resolved."""

Correction: TypeAlias = Literal["bonferroni", "bh"]
"""For many tests at once, as :func:`kslottery_fast.ks.adjust` explains."""

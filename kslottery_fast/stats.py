"""The KS names of version 0.1, for programs that import them. Their home is :mod:`kslottery_fast.ks`."""

from typing import TYPE_CHECKING, Any

from kslottery_fast import ks
from kslottery_fast.ks import (
    CORRECTIONS,
    KsResult,
    adjust,
    asymptotic_threshold,
    benjamini_hochberg,
    check_alpha,
    critical_count,
    ks_2samp,
    log_pvalues,
    pvalues,
    resolve_table_method,
)
from kslottery_fast.tickets.tables import ks_statistics

if TYPE_CHECKING:
    from kslottery_fast.ks import SmallSampleWarning

__all__ = [
    "CORRECTIONS",
    "KsResult",
    "SmallSampleWarning",
    "adjust",
    "asymptotic_threshold",
    "benjamini_hochberg",
    "check_alpha",
    "critical_count",
    "ks_2samp",
    "ks_statistics",
    "log_pvalues",
    "pvalues",
    "resolve_table_method",
]


if not TYPE_CHECKING:  # else every name would exist for type checkers

    def __getattr__(name: str) -> Any:
        if name == "SmallSampleWarning":
            return ks.SmallSampleWarning
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

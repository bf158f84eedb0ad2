"""The KS names of version 0.1, kept for programs that import them; :mod:`kslottery_fast.ks` is their home."""

from kslottery_fast.ks import (
    CORRECTIONS,
    KsResult,
    SmallSampleWarning,
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

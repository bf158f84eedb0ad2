"""The two-sample Kolmogorov-Smirnov test for any samples: statistics, p-values, thresholds, corrections."""

from .pvalues import (
    CORRECTIONS,
    adjust,
    asymptotic_threshold,
    benjamini_hochberg,
    check_alpha,
    critical_count,
    log_pvalues,
    pvalues,
    resolve_table_method,
)
from .twosample import KsResult, SmallSampleWarning, ks_2samp

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
    "log_pvalues",
    "pvalues",
    "resolve_table_method",
]

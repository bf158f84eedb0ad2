"""The two-sample Kolmogorov-Smirnov test for any samples: statistics, p-values, thresholds, corrections."""

from typing import TYPE_CHECKING, Any

from .accumulator import KsAccumulator
from .corrections import CORRECTIONS, adjust, benjamini_hochberg
from .frame_result import ColumnTest, KsFrameResult
from .frames import ks_frames
from .significance import (
    asymptotic_threshold,
    check_alpha,
    critical_count,
    log_pvalues,
    pvalues,
    resolve_table_method,
)
from .small_samples import small_sample_warning
from .stream import ks_stream
from .stream_result import KsStreamResult
from .twosample import KsResult, ks_2samp

if TYPE_CHECKING:
    from scipy.stats._axis_nan_policy import SmallSampleWarning

__all__ = [
    "CORRECTIONS",
    "ColumnTest",
    "KsAccumulator",
    "KsFrameResult",
    "KsResult",
    "KsStreamResult",
    "SmallSampleWarning",
    "adjust",
    "asymptotic_threshold",
    "benjamini_hochberg",
    "check_alpha",
    "critical_count",
    "ks_2samp",
    "ks_frames",
    "ks_stream",
    "log_pvalues",
    "pvalues",
    "resolve_table_method",
]


if not TYPE_CHECKING:  # else every name would exist for type checkers

    def __getattr__(name: str) -> Any:
        if name == "SmallSampleWarning":
            return small_sample_warning()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

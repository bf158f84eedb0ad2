"""The warning about samples that are too small."""

from __future__ import annotations

import functools


@functools.cache
def small_sample_warning() -> type[RuntimeWarning]:
    """Scipy's class, which users of scipy filter by; it takes half a second to import, so it comes when asked for.

    Scipy has it under a private name, since version 1.15; before, there is one of ours.
    """
    try:
        from scipy.stats._axis_nan_policy import SmallSampleWarning
    except ImportError:

        class SmallSampleWarning(RuntimeWarning):  # type: ignore[no-redef]
            """A sample is empty: the result is NaN."""

    return SmallSampleWarning

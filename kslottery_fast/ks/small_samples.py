"""The warning about samples that are too small."""

import functools


@functools.cache
def small_sample_warning() -> type[RuntimeWarning]:
    """Return scipy's class of warning, which users of scipy filter by.

    It takes half a second to import, so it is imported when it is asked for. Scipy has it under a private name since
    version 1.15. With an earlier version it is a class of this package.

    Returns
    -------
    type
        A subclass of RuntimeWarning.

    Examples
    --------
    >>> small_sample_warning().__name__
    'SmallSampleWarning'
    """
    try:
        from scipy.stats._axis_nan_policy import SmallSampleWarning
    except ImportError:

        class SmallSampleWarning(RuntimeWarning):  # type: ignore[no-redef]
            """A sample is empty: the result is NaN."""

    return SmallSampleWarning

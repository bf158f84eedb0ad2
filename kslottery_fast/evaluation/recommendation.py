"""The recommended number of rows: the smallest set that keeps nearly all of Embed Tuning's gain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError

from .checks import check_instance, check_list
from .replicates import Replicates


@dataclass(frozen=True)
class Candidate:
    """A model that may be recommended.

    Attributes
    ----------
    arm : str
        Its name.
    rows : float
        Number of its rows, averaged over seeds.
    validation, test : Replicates
        Its NLL on the validation split and on the test split.
    """

    arm: str
    rows: float
    validation: Replicates
    test: Replicates


def recommend(
    candidates: Sequence[Candidate], untuned: Candidate, embed: Candidate, margin: float
) -> dict[str, Any] | None:
    """Return the smallest set of rows that keeps all but ``margin`` of Embed Tuning's gain in validation NLL.

    A set must do so at the lower end of its interval, and all larger sets must do so, too. Among many small sets, one
    may pass by luck.

    Parameters
    ----------
    candidates : sequence of Candidate
        Sets of rows, in any order.
    untuned, embed : Candidate
        The two models between which the gain lies.
    margin : float
        The share of the gain that may be lost, 0 to 1.

    Returns
    -------
    dict or None
        ``arm`` and ``rows`` belong to the recommended set, and are None if no set is good enough. ``kept`` has an entry
        for every candidate, smallest first: the share of the gain that it keeps, with its 95% interval, and under
        ``test`` the same on the test split, which played no part in the choice (None if the gain there is not clearly
        above 0). The whole result is None if Embed Tuning's own gain on the validation split is not clearly above 0.

    Raises
    ------
    InputError
        ``margin`` is out of range, or the models were resampled differently.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> def candidate(arm, rows, nll):
    ...     found = Replicates(nll, np.full((10, 1), nll))
    ...     return Candidate(arm, rows, found, found)
    >>> sets = [candidate("partial@18", 18, 2.5), candidate("partial@64", 64, 2.05)]
    >>> recommend(sets, candidate("untuned", 0, 3.0), candidate("embed", 2000, 2.0), margin=0.1)["arm"]
    'partial@64'
    """
    candidates = check_list(candidates, Candidate, "candidates", empty=True)
    check_instance(untuned, Candidate, "untuned")
    check_instance(embed, Candidate, "embed")
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise TypeError(f"margin is {shown(margin)}: expected a number from 0 to 1")
    if not 0 <= margin <= 1:
        raise InputError(f"margin is {margin}: expected a number from 0 to 1")
    gain, test_gain = untuned.validation - embed.validation, untuned.test - embed.test
    kept: list[dict[str, Any]] = []
    for candidate in sorted(candidates, key=lambda one: one.rows):
        share = (untuned.validation - candidate.validation).share_of(gain)
        if share is None:
            return None
        test = (untuned.test - candidate.test).share_of(test_gain)
        kept.append(
            {"arm": candidate.arm, "rows": candidate.rows, **share.to_dict(), "test": test.to_dict() if test else None}
        )
    chosen: dict[str, Any] = {"arm": None, "rows": None}
    for one in reversed(kept):
        if one["low"] < 1 - margin or one["rows"] == 0:
            break
        chosen = one
    return {"arm": chosen["arm"], "rows": chosen["rows"], "margin": margin, "kept": kept}

"""The recommended number of rows: the smallest set that keeps nearly all of Embed Tuning's gain."""

from collections.abc import Iterable, Sequence
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
    way : str
        How its rows are chosen and made. Sets of one way differ in their size alone.
    control : bool
        Whether it is only compared and never recommended.
    """

    arm: str
    rows: float
    validation: Replicates
    test: Replicates
    way: str = ""
    control: bool = False


def recommend(
    candidates: Sequence[Candidate], untuned: Candidate, embed: Candidate, margin: float
) -> dict[str, Any] | None:
    """Return the smallest set of rows that keeps all but ``margin`` of Embed Tuning's gain in validation NLL.

    A set must do so at the lower end of its interval, and all larger sets of the same way must do so, too. Among many
    small sets, one may pass by luck.

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
        ``arm`` and ``rows`` belong to the recommended set, and are None if no set is good enough. ``take`` is the arm
        of that set. If no set is good enough, it is the one that keeps most, and None if none keeps anything.

        ``kept`` has an entry for every candidate that is no control, smallest first: the share of the gain that it
        keeps, with its 95% interval, whether it ``passes``, and under ``test`` the same share on the test split, which
        played no part in the choice (None if the gain there is not clearly above 0).

        ``as_good`` has an entry for every other way that does as well as the set to take: its smallest set whose
        validation NLL is not clearly higher by the paired interval, and whose share of the gain is smaller by no more
        than ``margin``. Controls are among them.

        The whole result is None if Embed Tuning's own gain on the validation split is not clearly above 0.

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
    ...     return Candidate(arm, rows, found, found, way=arm.partition("@")[0])
    >>> sets = [candidate("l2@18", 18, 2.5), candidate("l2@64", 64, 2.05), candidate("frequency@208", 208, 2.04)]
    >>> found = recommend(sets, candidate("untuned", 0, 3.0), candidate("embed", 2000, 2.0), margin=0.1)
    >>> found["arm"], [one["arm"] for one in found["as_good"]]
    ('l2@64', ['frequency@208'])
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
    ordered = sorted(candidates, key=lambda one: one.rows)
    for candidate in ordered:
        share = (untuned.validation - candidate.validation).share_of(gain)
        if share is None:
            return None
        test = (untuned.test - candidate.test).share_of(test_gain)
        kept.append(
            {"arm": candidate.arm, "rows": candidate.rows, **share.to_dict(), "test": test.to_dict() if test else None}
        )
    passing = _passing(ordered, kept, margin)
    for i, entry in enumerate(kept):
        entry["passes"] = i in passing
    offered = [i for i, one in enumerate(ordered) if not one.control]
    chosen = min(passing, key=lambda i: (kept[i]["rows"], -kept[i]["value"])) if passing else None
    take = _best(kept, offered) if chosen is None else chosen
    return {
        "arm": None if chosen is None else kept[chosen]["arm"],
        "rows": None if chosen is None else kept[chosen]["rows"],
        "margin": margin,
        "kept": [kept[i] for i in offered],
        "take": None if take is None else kept[take]["arm"],
        "as_good": [] if take is None else _as_good(ordered, kept, take, margin),
    }


def _passing(ordered: Sequence[Candidate], kept: Sequence[dict[str, Any]], margin: float) -> set[int]:
    """The candidates that may be recommended: they and all larger sets of their way lose no more than the margin."""
    found, failed = set(), set()
    for i in reversed(range(len(ordered))):
        if kept[i]["low"] < 1 - margin or ordered[i].rows == 0:
            failed.add(ordered[i].way)
        elif ordered[i].way not in failed and not ordered[i].control:
            found.add(i)
    return found


def _best(kept: Sequence[dict[str, Any]], offered: Iterable[int]) -> int | None:
    able = [i for i in offered if kept[i]["rows"] > 0 and kept[i]["value"] > 0]
    return max(able, key=lambda i: kept[i]["value"], default=None)


def _as_good(
    ordered: Sequence[Candidate], kept: Sequence[dict[str, Any]], take: int, margin: float
) -> list[dict[str, Any]]:
    """The smallest set of every other way that does as well as the set to take."""
    found: dict[str, dict[str, Any]] = {}
    for one, share in zip(ordered, kept, strict=True):
        if one.way in (ordered[take].way, *found) or one.rows == 0 or share["value"] < kept[take]["value"] - margin:
            continue
        difference = (one.validation - ordered[take].validation).interval()
        if difference.low <= 0:
            found[one.way] = {"arm": one.arm, "rows": one.rows, "difference": difference.to_dict()}
    return list(found.values())

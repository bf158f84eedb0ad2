"""The answer to the user's question, in one line: how many rows are enough, and which to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kslottery_fast.lab.experiment.specs import FACTS, shown_rates

from .words import Outcome, about, chosen_rows, listed, options_of, selector_name, way_of

SIMPLE = ("frequency", "random")
"""Selectors that need no Embed Tuning. The answer says whether one of them may do as well."""


def answer(found: Mapping[str, Any] | None, where: str = "", on_test: Mapping[str, Outcome] | None = None) -> str:
    r"""Say how many rows are enough for which share of the gain, which to take, and what may do as well.

    Parameters
    ----------
    found : mapping or None
        The entry ``recommendation`` of a language in ``summary.json``, or that of the mean over languages.
    where : str, optional
        What the numbers are about, such as "in the mean over 2 languages".
    on_test : mapping, optional
        How other selectors did on the test pairs, compared with the set to take and at its size. Where that differs
        from what the validation pairs say, the line says both.

    Returns
    -------
    str
        One line of up to four short sentences.

    Examples
    --------
    >>> def kept(arm, rows, share):
    ...     return {"arm": arm, "rows": rows, "value": share, "passes": share > 0.91}
    >>> sets = [kept("l2@18", 18, 0.83), kept("l2@64", 64, 0.92), kept("frequency@208", 208, 0.95)]
    >>> found = {"kept": sets, "take": "l2@64", "arm": "l2@64", "as_good": [{"arm": "frequency@208", "rows": 208}]}
    >>> print(answer(found).replace(". ", ".\n"))
    On the validation pairs, 18 trained rows are enough for 83% of Embed Tuning's gain, 64 for 92% and 208 for 95%.
    Take l2@64, which trains the 64 rows of largest L2 shift.
    Frequency may do as well at 208 rows.
    >>> found["as_good"] = [{"arm": "frequency@64", "rows": 64}]
    >>> print(answer(found, on_test={"frequency": "worse"}).partition("shift. ")[2])
    Frequency may do as well at 64 rows (it does worse on the test pairs).
    """
    start = f"{where[:1].upper()}{where[1:]}, on the validation pairs," if where else "On the validation pairs,"
    if found is None:
        return (
            f"{start} Embed Tuning did not clearly lower the NLL, so it cannot be said how many rows are enough for "
            "its gain. Train longer or try another learning rate."
        )
    if not found["kept"]:
        return (
            "No arm here trains or copies rows that a selector chose, so it cannot be said how many rows are enough. "
            "Add some arms, for example partial@18 and partial@64."
        )
    if found["take"] is None:
        return f"{start} no set of rows keeps any of Embed Tuning's gain. Add larger sets."
    parts = [f"{start} {_enough(found['kept'])}."]
    if len(found["kept"]) > 1:
        parts.append(f"{_take(found)}.")
    if also := _also(found, on_test or {}):
        parts.append(f"{also}.")
    return " ".join(parts)


def reason(found: Mapping[str, Any] | None) -> str:
    """Say why the answer is what it is, with intervals and with the share on the test pairs.

    Parameters
    ----------
    found : mapping or None
        As for :func:`answer`.

    Returns
    -------
    str
        Empty if there is nothing to add to the answer.
    """
    if found is None or found["take"] is None:
        return ""
    one = next(one for one in found["kept"] if one["arm"] == found["take"])
    name = shown_rates(one["arm"])
    rule = f"at least {1 - found['margin']:.0%} of Embed Tuning's gain in validation NLL"
    on_test = (
        "its share cannot be given because the gain there is not clearly above 0"
        if one["test"] is None
        else f"it keeps {_share_text(one['test'])}"
    )
    tested = f"On the test pairs, which were not used to choose it, {on_test}."
    if found["arm"] is None:
        return (
            f"No set here keeps {rule} at the lower end of its 95% interval, as a recommended set and all larger ones "
            f"of its kind must. The one that keeps most is {name} with {_share_text(one)}. {tested} Add larger "
            "sets."
        )
    if len(found["kept"]) == 1:
        return f"{name} keeps {_share_text(one)} of Embed Tuning's gain in validation NLL. {tested}"
    return (
        f"{name} is the smallest set that, like all larger sets of its kind, keeps {rule} at the lower end of "
        f"its 95% interval. It keeps {_share_text(one)}. {tested}"
    )


def _share_text(found: Mapping[str, float]) -> str:
    return f"{found['value']:.0%} (95% interval {found['low']:.0%} to {found['high']:.0%})"


def _enough(kept: Sequence[Mapping[str, Any]]) -> str:
    """Which numbers of rows are enough for which shares; copied rows and trained rows apart."""
    told: list[str] = []
    for copied in (True, False):
        sizes = front([one for one in kept if FACTS[_name(one["arm"])].trains != copied])
        shares = [f"{about(one['rows'])} for {one['value']:.0%}" for one in sizes[1:]]
        if sizes:
            verb = "copied" if copied else "trained"
            noun = "row is" if sizes[0]["rows"] == 1 else "rows are"
            first = f"{about(sizes[0]['rows'])} {verb} {noun} enough for {sizes[0]['value']:.0%}"
            told.append(listed([first + ("" if told else " of Embed Tuning's gain"), *shares]))
    return ", and ".join(told)


def front(kept: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the best set of every size, without sizes at which a smaller set keeps as much.

    Parameters
    ----------
    kept : sequence of mapping
        Sets with ``rows``, ``value`` (the share of the gain that they keep) and ``passes``.

    Returns
    -------
    list of mapping
        The smallest first. Of one size, a set that may be recommended comes before one that may not.

    Examples
    --------
    >>> sets = [(18, 0.8, False), (18, 0.7, False), (64, 0.92, False), (64, 0.91, True), (200, 0.9, False)]
    >>> kept = [{"rows": rows, "value": value, "passes": passes} for rows, value, passes in sets]
    >>> [(one["rows"], one["value"]) for one in front(kept)]
    [(18, 0.8), (64, 0.91)]
    """
    best: dict[int, Mapping[str, Any]] = {}
    for one in kept:
        size = round(one["rows"])
        if size not in best or (one["passes"], one["value"]) > (best[size]["passes"], best[size]["value"]):
            best[size] = one
    found: list[Mapping[str, Any]] = []
    for _, one in sorted(best.items()):
        if one["value"] > max([0.0, *(smaller["value"] for smaller in found)]):
            found.append(one)
    return found


def _take(found: Mapping[str, Any]) -> str:
    one = next(one for one in found["kept"] if one["arm"] == found["take"])
    facts = FACTS[_name(one["arm"])]
    verb = "trains" if facts.trains else "copies"
    best = "" if found["arm"] else ", the best set here"
    return (
        f"Take {shown_rates(one['arm'])}{best}, which {verb} {chosen_rows(facts.selector or one['arm'], one['rows'])}"
    )


def _also(found: Mapping[str, Any], on_test: Mapping[str, Outcome]) -> str:
    """Which simpler selectors may do as well. If one of them is to be taken: whether KS may."""
    own = FACTS[_name(found["take"])]
    compared = SIMPLE if own.selector not in SIMPLE else ("ks",)
    told: dict[str, str] = {}
    for one in sorted(found["as_good"], key=lambda one: (one["rows"], FACTS[_name(one["arm"])].trains)):
        facts = FACTS[_name(one["arm"])]
        if facts.selector and facts.selector in compared and facts.selector not in told:
            made = "" if facts.trains == own.trains else " trained" if facts.trains else " copied"
            noun = "row" if one["rows"] == 1 else "rows"
            name, count = selector_name(facts.selector), about(one["rows"])
            but = _but(found, one, on_test.get(facts.selector))
            told[facts.selector] = f"{name} may do as well at {count}{made} {noun}{but}"
    text = listed(list(told.values())) if told else ""
    return text[:1].upper() + text[1:]


def _but(found: Mapping[str, Any], one: Mapping[str, Any], outcome: Outcome | None) -> str:
    """What the test pairs say about a selector that may do as well, if they say something else.

    They were asked at the size of the set to take. That it does worse there says nothing against more rows, and that it
    does better says nothing about fewer.
    """
    taken = next(each for each in found["kept"] if each["arm"] == found["take"])
    made = [(FACTS[_name(each["arm"])].trains, options_of(each["arm"], without="draw")) for each in (one, taken)]
    more = one["rows"] - taken["rows"]
    if made[0] != made[1] or outcome not in ("better", "worse") or (more > 0 if outcome == "worse" else more < 0):
        return ""
    plural = FACTS[_name(one["arm"])].selector == "random"
    place = f" at {about(taken['rows'])}" if more else ""
    return f" ({'they do' if plural else 'it does'} {outcome}{place} on the test pairs)"


def _name(arm: str) -> str:
    return way_of(arm).partition(":")[0]

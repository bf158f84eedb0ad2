"""How many rows to take, and when not to trust the tickets: sentences from a comparison's validation scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kslottery_fast.evaluation.replicates import Replicates

FEW, MANY, STEEP, UNSTABLE = 5, 0.1, 3.0, 0.5
"""Warnings: fewer tickets than FEW; more than the share MANY of the active rows; a count that changes by the factor
STEEP when alpha is doubled or halved; a mean Jaccard overlap between seeds below UNSTABLE."""


@dataclass(frozen=True)
class Candidate:
    """A model: ``arm``, mean number of ``rows`` over seeds, replicates of its NLL on the validation and test split."""

    arm: str
    rows: float
    validation: Replicates
    test: Replicates


def recommend(
    candidates: Sequence[Candidate], untuned: Candidate, embed: Candidate, margin: float
) -> dict[str, Any] | None:
    """The smallest set that, like all larger ones, keeps all but ``margin`` of Embed Tuning's gain in validation NLL.

    It must do so at the lower end of its interval. Larger sets must pass too: of many small sets one may pass by luck.

    Returns
    -------
    dict : ``arm`` and ``rows`` of the recommended set, None if no set is good enough; ``kept``: for every candidate,
        smallest first, the share of the gain that it keeps with its 95 % interval, and under ``test`` the same on the
        test split, which chose nothing (None where the gain there is not clearly above 0). None in place of all where
        Embed Tuning's own gain on the validation split is not clearly above 0.
    """
    gain, test_gain = untuned.validation - embed.validation, untuned.test - embed.test
    kept: list[dict[str, Any]] = []
    for candidate in sorted(candidates, key=lambda one: one.rows):
        share = (untuned.validation - candidate.validation).share_of(gain)
        if share is None:
            return None
        test = (untuned.test - candidate.test).share_of(test_gain)
        kept.append({"arm": candidate.arm, "rows": candidate.rows, **share.to_dict(), "test": test and test.to_dict()})
    chosen = None
    for one in reversed(kept):
        if one["low"] < 1 - margin or one["rows"] == 0:
            break
        chosen = one
    return {
        "arm": chosen and chosen["arm"],
        "rows": chosen and chosen["rows"],
        "margin": margin,
        "kept": kept,
    }


def recommendation_text(found: Mapping[str, Any] | None) -> str:
    """The recommendation in a sentence."""
    if found is None:
        return (
            "No recommendation: Embed Tuning's gain in validation NLL is not clearly above 0, so no share of it means "
            "anything. Train longer or with another learning rate."
        )
    if not found["kept"]:
        return "No recommendation: the comparison has no arm `partial`; add some, such as partial@18 and partial@64."
    if found["arm"] is None:
        best = max(found["kept"], key=lambda one: one["value"])
        return (
            f"No set of tickets in this comparison surely keeps {1 - found['margin']:.0%} of Embed Tuning's gain in "
            f"validation NLL as all larger sets do; the best, {best['arm']} ({best['rows']:,.0f} rows), keeps "
            f"{_share(best)}. Add larger sets."
        )
    one = next(one for one in found["kept"] if one["arm"] == found["arm"])
    return (
        f"Recommended: {one['arm']}, {one['rows']:,.0f} rows: the smallest set here that, like all larger ones, surely "
        f"keeps {1 - found['margin']:.0%} of Embed Tuning's gain in validation NLL. It keeps {_share(one)}; on the "
        f"test pairs, which did not choose it, {_share(one['test'])}."
    )


def _share(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "no share can be told, since the gain there is not clearly above 0"
    return f"{found['value']:.0%} (95 % interval {found['low']:.0%} to {found['high']:.0%})"


def ticket_warnings(
    alpha: float,
    counts: Mapping[float, Sequence[int]],
    active: Sequence[int],
    overlap: float | None,
    overlap_of: str = "tickets",
) -> list[str]:
    """What speaks against relying on the tickets at ``alpha``.

    Parameters
    ----------
    counts : for alpha, its half and its double the number of tickets of every seed.
    active : active rows of every seed.
    overlap : mean Jaccard overlap of the tickets of two seeds; None with one seed.
    overlap_of : what these sets are, all chosen in the same way.
    """
    own = counts[alpha]
    least, most = min(own), max(own)
    span = f"{least}" if least == most else f"{least} to {most}"
    warnings = []
    if most == 0:
        warnings.append(
            f"At alpha = {alpha:g} the test selects no row with any seed: the number of tickets grows with learning "
            "rate and steps. Choose rows by number (partial@18) instead."
        )
    elif least < FEW:
        warnings.append(f"Few tickets at alpha = {alpha:g} ({span}): a slightly shorter training would leave none.")
    if any(count > MANY * rows for count, rows in zip(own, active, strict=True)):
        warnings.append(
            f"Many tickets at alpha = {alpha:g} ({span} of {active[0]:,} active rows): at this learning rate and "
            "number of steps the test hardly separates rows any more."
        )
    tighter, looser = sum(counts[alpha / 2]), sum(counts[min(2 * alpha, (1 + alpha) / 2)])
    if sum(own) and max(looser / sum(own), sum(own) / max(tighter, 1)) >= STEEP:
        warnings.append(
            f"The number of tickets is steep in alpha: {tighter} at half, {sum(own)} at alpha = {alpha:g}, {looser} at "
            "double (all seeds together)."
        )
    if overlap is not None and overlap < UNSTABLE and most:
        warnings.append(
            f"Unstable tickets: two training seeds share {overlap:.0%} of their {overlap_of} on average (Jaccard), "
            f"less than {UNSTABLE:.0%}."
        )
    return warnings


def control_sentence(
    control: str, own: str, difference: Mapping[str, float], per_seed: Sequence[float], covered: tuple[float, float]
) -> str:
    """Whether a control of the same size did as well as the tickets.

    One is called better only where the interval excludes 0 and the difference has the same sign with every seed.

    Parameters
    ----------
    control, own : the arms, such as frequency@18 and partial@18.
    difference : NLL of the control minus that of the tickets, with its interval.
    per_seed : the same of each training seed.
    covered : share of the training tokens whose rows the control and the tickets are, means over seeds.
    """
    one = len(per_seed) == 1
    by_seed = (
        "one training seed, so nothing is known of another"
        if one
        else (f"by seed {', '.join(f'{value:+.3f}' for value in per_seed)}")
    )
    facts = (
        f"(test NLL of {control} minus {own}: {difference['value']:+.3f} nats per token, 95 % interval "
        f"{difference['low']:+.3f} to {difference['high']:+.3f}; {by_seed}; its rows are {covered[0]:.0%} of the "
        f"training tokens, those of {own} {covered[1]:.0%})"
    )
    if difference["low"] > 0 and min(per_seed) > 0:
        return f"{own} is better than {control}, which has as many rows {facts}."
    if difference["high"] < 0 and max(per_seed) < 0:
        return f"{control} is better than {own} with as many rows {facts}: the KS test is not what makes rows good."
    return f"{control} cannot be told apart from {own}, which has as many rows {facts}."

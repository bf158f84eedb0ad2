"""Learning rates that were chosen on the validation pairs: for the summary, the table and the findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kslottery_fast.lab.experiment.specs import parse_arm, rate_text

from .words import NOTHING, arm_label, listed


def of_arm(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``summary.json`` says about the search of an arm.

    Parameters
    ----------
    records : sequence of mapping
        The ``arm.json`` of every training seed.

    Returns
    -------
    dict
        ``learning_rates``: for every seed the rate that was ``kept`` and the rates that were ``tried``, each with its
        NLL on the validation pairs (None if the training diverged). Empty if the arm did not search.

    Examples
    --------
    >>> tried = [{"rate": 0.01, "validation_nll": 2.5}, {"rate": 0.03, "validation_nll": 2.25}]
    >>> of_arm([{"kept": "partial@18:lr=0.03", "learning_rates": tried}])["learning_rates"][0]["kept"]
    0.03
    >>> of_arm([{"arm": "partial@18"}])
    {}
    """
    found = [
        {"kept": parse_arm(record["kept"], 1).learning_rate, "tried": record["learning_rates"]}
        for record in records
        if record.get("learning_rates")
    ]
    return {"learning_rates": found} if found else {}


def cell(arm: Mapping[str, Any]) -> tuple[str, str]:
    """Return the cell of a table: the rates that were kept, each once.

    Examples
    --------
    >>> cell({"learning_rates": [{"kept": 0.03}, {"kept": 0.01}, {"kept": 0.03}]}), cell({})
    (('0.01, 0.03', ''), ('–', ''))
    """
    kept = sorted({one["kept"] for one in arm.get("learning_rates", [])})
    return (", ".join(map(rate_text, kept)) or NOTHING), ""


def sentences(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say for which arms the best rate was the lowest or the highest that was tried.

    Parameters
    ----------
    arms : mapping
        The arms of a language in ``summary.json``.

    Returns
    -------
    list of str
        At most one sentence for either end. A rate next to one at which the training diverged is no end.
    """
    found = []
    for place, end, better in ((-1, "highest", "higher"), (0, "lowest", "lower")):
        names = []
        for spec, arm in arms.items():
            seeds = arm.get("learning_rates", [])
            count = sum(one["kept"] == one["tried"][place]["rate"] for one in seeds)
            if count:
                in_some = "" if count == len(seeds) else f" (with {count} of {len(seeds)} training seeds)"
                names.append(arm_label(spec, arm) + in_some)
        if names:
            found.append(
                f"The {end} learning rate that was tried had the lowest validation NLL for {listed(names)}. A {better} "
                "one may do better still."
            )
    return found

"""The table of selectors: which way to choose rows wins at which size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kslottery_fast.lab.experiment.specs import shown_rates

from .selector_facts import BASELINES
from .words import NOTHING, Cell, Outcome, about, interval_cell, selector_name

HEADINGS = ("Rows", "Chosen by", "NLL", "NLL minus frequency", "NLL minus KS")
NOTE = (
    "Selectors of the same size, compared by the NLL on the test pairs. The differences are paired over sentences and "
    "training seeds, with 95% intervals. A selector is better or worse only if the interval excludes 0 and the "
    "difference has the same sign with every training seed. Otherwise it is a tie: these pairs cannot tell them apart."
)
_OUTCOMES: dict[Outcome, str] = {"better": "better", "worse": "worse", "tie": "tie"}


def groups_of(summary: Mapping[str, Any], code: str) -> list[dict[str, Any]]:
    """Return the comparisons of the selectors in a language.

    Parameters
    ----------
    summary : mapping
        The content of ``summary.json``.
    code : str
        A language, or "mean" for the mean over languages.

    Returns
    -------
    list of dict
        What :func:`~.selector_facts.selectors` returns.
    """
    return list(summary["selectors"] if code == "mean" else summary["languages"][code]["selectors"])


def table_rows(groups: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    """Return a row of cells for every selector of every size, under ``HEADINGS``.

    Parameters
    ----------
    groups : sequence of mapping
        What :func:`groups_of` returns.
    """
    return [_row(group, model) for group in groups for model in group["models"]]


def csv_columns(groups: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return what scores.csv says about selectors.

    Parameters
    ----------
    groups : sequence of mapping
        What :func:`groups_of` returns.

    Returns
    -------
    tuple
        Further columns by arm, and lines of their own for means of several random draws.
    """
    columns: dict[str, dict[str, Any]] = {}
    lines = []
    for group in groups:
        for model in group["models"]:
            found = _flat(model["against"])
            if model["range"] is None:
                columns[model["arms"][0]] = found
            else:
                name = f"{model['arms'][0].partition(':')[0]}{group['options']} (mean of {len(model['arms'])} draws)"
                scores = {
                    "nll": model["nll"]["value"],
                    "nll.low": model["nll"]["low"],
                    "nll.high": model["nll"]["high"],
                }
                lines.append({"arm": name, "label": name, "rows": group["rows"], **scores, **found})
    return columns, lines


def _flat(against: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for other, found in against.items():
        for metric, one in found.items():
            if isinstance(one, Mapping):
                prefix = f"against_{other}.{metric}"
                flat |= {prefix: one["value"], f"{prefix}.low": one["low"], f"{prefix}.high": one["high"]}
        flat[f"against_{other}.outcome"] = found["outcome"]
    return flat


def _row(group: Mapping[str, Any], model: Mapping[str, Any]) -> list[Cell]:
    rows = f"{about(group['rows'])} {'copied' if group['copied'] else 'trained'}"
    draws = f"{len(model['arms'])} draws" if model["range"] else ""
    value, bounds = interval_cell(model["nll"], 3, 2)
    if model["range"]:
        bounds = "draws {:.2f}–{:.2f}".format(*model["range"])
    differences = [_difference(model, other) for other in BASELINES]
    return [
        (rows, shown_rates(group["options"][1:]).replace(":", " ")),
        (selector_name(model["selector"]), draws),
        (value, bounds),
        *differences,
    ]


def _difference(model: Mapping[str, Any], other: str) -> Cell:
    found = model["against"].get(other)
    if found is None:
        return NOTHING, ""
    value, bounds = interval_cell(found["nll"], 3, signed=True)
    return f"{value} {_OUTCOMES[found['outcome']]}", bounds

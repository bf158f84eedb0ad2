"""What is known of the tickets: how many, which, and how far sets of rows agree over seeds, selectors and languages."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kslottery_fast.ks.significance import critical_count
from kslottery_fast.lab.experiment.cell import Cell
from kslottery_fast.lab.experiment.controls import frequency_ranks
from kslottery_fast.lab.experiment.evidence import SELECTORS
from kslottery_fast.lab.experiment.settings import ALPHA_GRID
from kslottery_fast.lab.experiment.specs import ArmSpec
from kslottery_fast.tickets.select import select_tickets
from kslottery_fast.tickets.tickets import Tickets


def saved_tickets(cell: Cell) -> Tickets:
    """The tickets that the certificate of a cell speaks of."""
    return Tickets.load(cell.folder.stage_path("certificate") / "tickets.json")


def tickets_of(cell: Cell, spec: ArmSpec) -> Tickets:
    """The rows of an arm that takes the largest D, as Tickets; with their texts where they are those of the cell."""
    own, ids, base = saved_tickets(cell), cell.choose("ks", spec).tolist(), cell.shop.settings
    if sorted(own.token_ids.tolist()) == sorted(ids):
        return own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows that are not significant: their number was asked for
        if isinstance(spec.size, float):
            return select_tickets(cell.evidence.table(), spec.size, base.method, base.correction, None)
        return select_tickets(cell.evidence.table(), base.alpha, base.method, None, len(ids))


def selection(cell: Cell) -> dict[str, Any]:
    """The tickets of a cell in numbers."""
    evidence, saved, base = cell.evidence, saved_tickets(cell), cell.shop.settings
    threshold = saved.threshold
    if saved.selected_by != "alpha":  # the smallest significant D, also where top_k had to choose
        alpha = base.alpha / saved.vocab_size if base.correction else base.alpha
        threshold = critical_count(saved.dimension, alpha, base.method) / saved.dimension
    return {
        "count": len(saved),
        "alpha": base.alpha,
        "selected_by": saved.selected_by,
        "token_ids": saved.token_ids.tolist(),
        "threshold": threshold,
        "largest": float(evidence.counts.max()) / saved.dimension,
        "dimension": saved.dimension,
        "vocab_size": saved.vocab_size,
        "active_rows": len(evidence),
    }


def of_language(cells: Sequence[Cell], effects: Mapping[str, Any]) -> dict[str, Any]:
    """Counts over alpha and steps, overlap of seeds and selectors, and the list of the first seed's tickets."""
    base, evidence, saved = cells[0].shop.settings, [cell.evidence for cell in cells], saved_tickets(cells[0])
    alphas = sorted({*ALPHA_GRID, base.alpha, base.alpha / 2, min(2 * base.alpha, (1 + base.alpha) / 2)})

    def count(one: Any, alpha: float, counts: Any = None) -> int:
        return int(one.significant(alpha, base.method, base.correction, counts))

    return {
        "alpha": base.alpha,
        "selected_by": saved.selected_by,
        "active_rows": [len(one) for one in evidence],
        "dimension": evidence[0].dimension,
        "vocab_size": evidence[0].vocab_size,
        "by_alpha": [{"alpha": alpha, "counts": [count(one, alpha) for one in evidence]} for alpha in alphas],
        "by_steps": [
            {"step": step, "counts": [count(one, base.alpha, one.trajectory[place][1]) for one in evidence]}
            for place, (step, _) in enumerate(evidence[0].trajectory)
        ],
        **of_seeds(cells),
        "overlap_of_selectors": of_selectors(cells, len(saved)),
        "spec": str(cells[0].own_tickets()),
        "list": _list(cells[0], saved, effects),
    }


def _list(cell: Cell, tickets: Tickets, effects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each ticket with all that is known of it."""
    evidence = cell.evidence
    places = torch.searchsorted(evidence.token_ids, tickets.token_ids)
    columns = {
        "token_id": tickets.token_ids.tolist(),
        "token": tickets.token_texts or ("",) * len(tickets),
        "statistic": tickets.statistic.tolist(),
        "pvalue": tickets.pvalue.tolist(),
        "count": evidence.frequency[places].tolist(),
        "rank": frequency_ranks(evidence.frequency)[places].tolist(),
    }
    rows: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    by_token = {effect["token_id"]: effect for effect in effects.get("tickets", [])}
    for row in rows:
        known = by_token.get(row["token_id"], {})
        row["in_template"] = row["token_id"] in effects["template_tokens"] if effects else None
        row |= {name: known.get(name) for name in ("alone", "left_out")}
    return rows


def jaccard(first: set[int], second: set[int]) -> float:
    """Shared over all elements; 1 for two empty sets.

    >>> jaccard({1, 2}, {2, 3})
    0.3333333333333333
    """
    return len(first & second) / len(first | second) if first | second else 1.0


def common_tickets(cells: Sequence[Cell]) -> tuple[ArmSpec, list[set[int]]]:
    """Sets of tickets that can be compared, and how they were chosen: all by alpha, or all as top_k.

    Where alpha selects nothing in one cell, that cell goes on with its top_k rows; those beside the few that alpha
    selects in another would differ by their number alone.
    """
    settings = cells[0].shop.settings
    by_alpha = ArmSpec("transfer", settings.alpha)
    spec = by_alpha if all(cell.size(by_alpha) for cell in cells) else ArmSpec("transfer", settings.top_k)
    return spec, [set(cell.choose("ks", spec).tolist()) for cell in cells]


def words_of(spec: ArmSpec) -> str:
    """What :func:`common_tickets` compared.

    >>> words_of(ArmSpec("transfer", 0.05)), words_of(ArmSpec("transfer", 18))
    ('tickets at alpha = 0.05', '18 rows of largest D')
    """
    return f"tickets at alpha = {spec.size:g}" if isinstance(spec.size, float) else f"{spec.size} rows of largest D"


def of_seeds(cells: Sequence[Cell]) -> dict[str, Any]:
    """``overlap_of_seeds``, the mean Jaccard overlap of two seeds' tickets (None for one seed), and ``overlap_of``."""
    spec, chosen = common_tickets(cells)
    pairs = [jaccard(a, b) for a, b in itertools.combinations(chosen, 2)]
    return {"overlap_of_seeds": sum(pairs) / len(pairs) if pairs else None, "overlap_of": words_of(spec)}


def of_selectors(cells: Sequence[Cell], k: int) -> dict[str, Any]:
    """Jaccard overlap of the first k rows of every selector, mean over seeds."""
    sets = [
        [set(cell.evidence.token_ids[order(cell.evidence, cell.seed)[:k]].tolist()) for order in SELECTORS.values()]
        for cell in cells
    ]
    places = range(len(SELECTORS))
    matrix = [[sum(jaccard(one[i], one[j]) for one in sets) / len(sets) for j in places] for i in places]
    return {"rows": k, "names": list(SELECTORS), "matrix": matrix}


def of_languages(cells: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """Jaccard overlap of the tickets of two languages, mean over seeds; ``cells`` of each language, seed by seed."""
    spec, chosen = common_tickets([cell for language in cells.values() for cell in language])
    remaining = iter(chosen)
    sets = {code: list(itertools.islice(remaining, len(language))) for code, language in cells.items()}
    matrix = [[sum(map(jaccard, sets[a], sets[b])) / len(sets[a]) for b in cells] for a in cells]
    return {"names": list(cells), "matrix": matrix, "of": words_of(spec)}

"""Facts about the tickets: how many, which ones, and how far they agree over seeds, selectors and languages."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kslottery_fast.base.options import Selector
from kslottery_fast.ks.significance import critical_count
from kslottery_fast.lab.experiment.cell import Cell
from kslottery_fast.lab.experiment.run_settings import ALPHA_GRID
from kslottery_fast.lab.experiment.specs import ArmSpec
from kslottery_fast.tickets.evidence import SELECTORS, frequency_ranks
from kslottery_fast.tickets.overlap import jaccard, overlap_matrix
from kslottery_fast.tickets.select import select_tickets
from kslottery_fast.tickets.selected_rows import SelectedRows
from kslottery_fast.tickets.tickets import Tickets

from .words import plural


def saved_tickets(cell: Cell) -> Tickets:
    """Return the tickets that the certificate of a cell is about."""
    return Tickets.load(cell.folder.stage_path("certificate") / "tickets.json")


def tickets_of(cell: Cell, spec: ArmSpec) -> Tickets:
    """Return the rows of an arm that takes the largest D, as Tickets.

    Token texts come from the tickets of the cell. If other rows are among them, no texts are kept.
    """
    own, ids, base = saved_tickets(cell), cell.choose("ks", spec).tolist(), cell.shop.settings
    if sorted(own.token_ids.tolist()) == sorted(ids):
        return own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows that are not significant: their number was given
        if isinstance(spec.size, float):
            found = select_tickets(cell.evidence.table(), spec.size, base.method, base.correction, None)
        else:
            found = select_tickets(cell.evidence.table(), base.alpha, base.method, None, len(ids))
    texts = dict(zip(own, own.token_texts or (), strict=False))
    known = all(token in texts for token in found)
    return replace(found, token_texts=tuple(texts[token] for token in found)) if known else found


def rows_of(cell: Cell, spec: ArmSpec, selector: Selector) -> SelectedRows:
    """Return the rows of an arm of any selector, with the texts of their tokens if its stage kept them."""
    kept = cell.stage(spec) / "selected.json"
    return SelectedRows.load(kept) if kept.exists() else cell.selected(selector, spec)


def selection(cell: Cell) -> dict[str, Any]:
    """Return the tickets of a cell in numbers."""
    saved, base = saved_tickets(cell), cell.shop.settings
    threshold = saved.threshold
    if saved.selected_by != "alpha":  # the smallest significant D, even if top_k chose the rows
        alpha = base.alpha / saved.vocab_size if base.correction else base.alpha
        threshold = critical_count(saved.dimension, alpha, base.method) / saved.dimension
    return {
        "count": len(saved),
        "alpha": base.alpha,
        "selected_by": saved.selected_by,
        "token_ids": saved.token_ids.tolist(),
        "threshold": threshold,
        "largest": float(cell.evidence.counts.max()) / saved.dimension,
        "dimension": saved.dimension,
        "vocab_size": saved.vocab_size,
        "active_rows": len(cell.evidence),
    }


def of_language(cells: Sequence[Cell], effects: Mapping[str, Any], *, contributions: bool = False) -> dict[str, Any]:
    """Return counts by alpha and steps, overlaps of seeds and of selectors, and the tickets of the first seed.

    ``contributions`` says whether those of the rows were measured.
    """
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
        "overlap_of_selectors": _of_selectors(cells, len(saved), contributions=contributions),
        "spec": str(cells[0].own_tickets()),
        "list": _list(cells[0], saved, effects),
    }


def _list(cell: Cell, tickets: Tickets, effects: Mapping[str, Any]) -> list[dict[str, Any]]:
    frequency = cell.evidence.frequency
    places = torch.searchsorted(cell.evidence.token_ids, tickets.token_ids)
    columns = {
        "token_id": tickets.token_ids.tolist(),
        "token": tickets.token_texts or ("",) * len(tickets),
        "statistic": tickets.statistic.tolist(),
        "pvalue": tickets.pvalue.tolist(),
        "count": frequency[places].tolist(),
        "rank": frequency_ranks(frequency)[places].tolist(),
    }
    known = {effect["token_id"]: effect for effect in effects.get("tickets", [])}
    return [
        {
            **dict(zip(columns, row, strict=True)),
            "in_template": row[0] in effects["template_tokens"] if effects else None,
            **{name: known.get(row[0], {}).get(name) for name in ("alone", "left_out")},
        }
        for row in zip(*columns.values(), strict=True)
    ]


def common_tickets(cells: Mapping[str, Sequence[Cell]]) -> tuple[str, dict[str, list[set[int]]]]:
    """Return sets of tickets that can be compared.

    Parameters
    ----------
    cells : mapping
        The cells of each language, seed by seed.

    Returns
    -------
    tuple
        How the sets were chosen, in words, and the sets by language, seed by seed.

    Notes
    -----
    All sets are chosen by alpha, or all have the same number of rows. If alpha selects nothing in one cell, that cell
    uses its top_k rows. Compared with the few rows that alpha selects in another cell, they would differ by their
    number alone. The same is true if fewer rows moved in some cell.
    """
    every = list(itertools.chain(*cells.values()))
    alpha, top_k = every[0].shop.settings.alpha, every[0].shop.settings.top_k
    spec, words = ArmSpec("transfer", alpha), f"tickets at alpha = {alpha:g}"
    if not all(cell.size(spec) for cell in every):
        k = min(top_k, *(int((cell.evidence.counts > 0).sum()) for cell in every))
        spec, words = ArmSpec("transfer", k), f"{plural(k, 'row')} of largest D"
    return words, {name: [set(cell.choose("ks", spec).tolist()) for cell in group] for name, group in cells.items()}


def of_seeds(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the mean Jaccard overlap of two seeds, and of which rows it is; None for one seed."""
    if len(cells) == 1:
        return {"overlap_of_seeds": None, "overlap_of": None}
    words, chosen = common_tickets({"": cells})
    pairs = [jaccard(a, b) for a, b in itertools.combinations(chosen[""], 2)]
    return {"overlap_of_seeds": sum(pairs) / len(pairs), "overlap_of": words}


def _of_selectors(cells: Sequence[Cell], k: int, *, contributions: bool) -> dict[str, Any]:
    names = [*SELECTORS, *(["contribution"] if contributions else [])]
    sets = [[set(cell.order(name)[:k].tolist()) for cell in cells] for name in names]
    return {"rows": k, "names": names, "matrix": overlap_matrix(sets)}


def of_languages(cells: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
    """Return the Jaccard overlap of the tickets of two languages, mean over seeds; ``cells`` by language and seed."""
    words, chosen = common_tickets(cells)
    return {"names": list(cells), "matrix": overlap_matrix(list(chosen.values())), "of": words}

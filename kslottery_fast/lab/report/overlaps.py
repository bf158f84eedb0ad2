"""How far sets of rows agree: between training seeds, between selectors, between languages."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from kslottery_fast.lab.experiment.cell import Cell
from kslottery_fast.lab.experiment.evidence import SELECTORS
from kslottery_fast.lab.experiment.settings import ArmSpec


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

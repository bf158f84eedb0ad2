"""How many predictions are certified, and how often the certificate was wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def level_at(certificate: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """Return the level of a certificate at one alpha, with ``wrong``: the share of certified positions in violation.

    Parameters
    ----------
    certificate : mapping
        As ``summary.json`` holds it.
    alpha : float
        One of its levels.

    Returns
    -------
    dict
        The level. ``wrong`` is 0 if no position is certified.

    Examples
    --------
    >>> level = {"alpha": 0.05, "certified": 0.5, "violations": 10}
    >>> level_at({"positions": 100, "levels": [level]}, 0.05)["wrong"]
    0.2
    """
    level = next(level for level in certificate["levels"] if level["alpha"] == alpha)
    count = round(level["certified"] * certificate["positions"])
    return {**level, "certified_positions": count, "wrong": level["violations"] / count if count else 0.0}


def certified_text(certificate: Mapping[str, Any], alpha: float, seed: str = "") -> str:
    """Say how many positions are certified and how often this was wrong.

    Parameters
    ----------
    certificate : mapping
        As ``summary.json`` holds it.
    alpha : float
        One of its levels.
    seed : str
        Words that name the training seed, if there are several.

    Returns
    -------
    str
        A sentence without its full stop.

    Examples
    --------
    >>> level = {"alpha": 0.05, "certified": 0.5, "violations": 10}
    >>> certified_text({"positions": 100, "levels": [level]}, 0.05)
    '50.0% of 100 positions are certified at alpha = 0.05; the certificate is wrong at 10 of these 50 (20.0%)'
    """
    level = level_at(certificate, alpha)
    text = (
        f"{level['certified']:.1%} of {certificate['positions']:,} positions are certified at alpha = {alpha:g}{seed}"
    )
    if not level["certified_positions"]:
        return text
    wrong, count = level["violations"], level["certified_positions"]
    return f"{text}; the certificate is wrong at {wrong:,} of these {count:,} ({level['wrong']:.1%})"

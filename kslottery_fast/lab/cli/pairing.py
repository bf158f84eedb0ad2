"""The options that say which tensors and which rows of two checkpoints are one another."""

import argparse
from typing import Any, get_args

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import ComparedRows


def add_pairing(group: Any) -> None:
    """Add ``--rows`` and ``--map``."""
    group.add_argument(
        "--rows",
        choices=get_args(ComparedRows),
        default="all",
        help="shared compares the rows that both have, where the vocabulary was resized",
    )
    group.add_argument(
        "--map",
        type=_renaming,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="what a tensor of BEFORE is called in AFTER, or how its name begins there; may be given several times",
    )


def pairing(options: argparse.Namespace) -> dict[str, Any]:
    """Return what :func:`add_pairing` read, as arguments of ``scan_checkpoints`` and ``ks_select_checkpoints``.

    Raises
    ------
    InputError
        Two ``--map`` have the same left side.
    """
    name_map: dict[str, str] = {}
    for old, new in options.map:
        if name_map.setdefault(old, new) != new:
            raise InputError(f"--map {old}={new}: {old or 'the empty beginning'} is mapped to {name_map[old]} already")
    return {"rows": options.rows, "name_map": name_map or None}


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or "=" in new or old == new:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not OLD=NEW: expected two different names, or beginnings of names, one of which may be empty"
        )
    return old, new

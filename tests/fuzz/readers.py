"""Everything that reads a file of a user: how to make a valid one, and how a command or function reads it.

A reader gets a folder of files, of which one was damaged. It has to return, or to raise InputError.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoint_readers import CHECKPOINTS
from experiment_readers import EXPERIMENTS
from reader import Reader, V, described, each, table, tuned

from kslottery_fast import ks_select
from kslottery_fast.base.ticket_ids import COMPARISON, digest_of


def _make_tickets(folder: Path) -> None:
    ks_select(table(0), tuned(), top_k=3).save(folder / "tickets.json")


def _read_tickets(folder: Path) -> None:
    from kslottery_fast.base.ticket_ids import read_ticket_ids
    from kslottery_fast.tickets.tickets import Tickets

    path = folder / "tickets.json"
    each(lambda: Tickets.load(path).summary(), lambda: read_ticket_ids(path), lambda: described(path))


def _make_rows(folder: Path) -> None:
    from kslottery_fast.tickets.selected_rows import SelectedRows

    values, shares = torch.tensor([0.5, 0.25]), torch.tensor([0.6, 0.9]).double()
    SelectedRows(torch.tensor([7, 3]), values, "contribution", V, shares, ("a", "b")).save(folder / "rows.json")


def _read_rows(folder: Path) -> None:
    from kslottery_fast.tickets.selected_rows import SelectedRows

    path = folder / "rows.json"
    each(lambda: SelectedRows.load(path).summary(), lambda: described(path))


def with_digest(content: bytes) -> bytes:
    """Make the digest of a ticket file right."""
    data = json.loads(content)
    digest = digest_of({key: data[key] for key in data if key not in ("digest", COMPARISON)})
    return json.dumps({**data, "digest": digest}).encode()


def _make_corpora(folder: Path) -> None:
    pairs = [
        ("The house is big.", "La casa es grande."),
        ("Save", "Guardar"),
        ("“Quotes”, and more", "«Comillas», y más"),
    ]
    (folder / "a.tsv").write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in pairs), "utf-8")
    (folder / "b.csv").write_text("".join(f'"{a}","{b}"\n' for a, b in pairs), "utf-8")
    lines = (json.dumps({"source": a, "target": b}, ensure_ascii=False) + "\n" for a, b in pairs)
    (folder / "c.jsonl").write_text("".join(lines), "utf-8")


def _read_corpora(folder: Path) -> None:
    from kslottery_fast.lab.data.readers import read_table

    each(*(lambda name=name: read_table(folder / name) for name in ("a.tsv", "b.csv", "c.jsonl")))  # type: ignore[misc]


_PO = r"""# A comment
msgid ""
msgstr ""
"Language: es\n"
"Content-Type: text/plain; charset=UTF-8\n"

#: a.py:3
#, fuzzy, python-format
msgid "Save %s"
msgstr "Guardar %s"

msgid "The house is \"big\".\n"
msgstr "La casa es «grande».\n"

msgctxt "menu"
msgid "one file"
msgid_plural "%d files"
msgstr[0] "un archivo"
msgstr[1] "%d archivos"

#~ msgid "old"
#~ msgstr "viejo"
"""


def _read_po(folder: Path) -> None:
    from kslottery_fast.lab.data.languages import find_language
    from kslottery_fast.lab.data.readers import read_catalogue_folder

    read_catalogue_folder(folder, find_language("es"), Counter())


def _frame() -> Any:
    import pyarrow as pa

    when = pa.array(range(40), pa.timestamp("s"))
    city = pa.array(["Rome", "Oslo", None, "Köln"] * 10)
    return pa.table({"age": range(40), "income": [i / 7 for i in range(40)], "when": when, "city": city})


def _make_parquet(folder: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(_frame(), folder / "t.parquet", row_group_size=16)


def _make_feather(folder: Path) -> None:
    from pyarrow import feather

    feather.write_feather(_frame(), folder / "t.feather", compression="uncompressed")


def _make_csv(folder: Path) -> None:
    from pyarrow import csv

    csv.write_csv(_frame(), folder / "t.csv")


def _drift(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from kslottery_fast.ks.frames import ks_frames

        ks_frames(_frame(), folder / name).to_csv()

    return read


_ARROW = ("pyarrow",)
READERS: dict[str, Reader] = {
    "tickets": Reader(_make_tickets, _read_tickets, repair=with_digest),
    "selected-rows": Reader(_make_rows, _read_rows, repair=with_digest),
    **CHECKPOINTS,
    **EXPERIMENTS,
    "corpora": Reader(_make_corpora, _read_corpora),
    "catalogue": Reader(lambda folder: (folder / "es.po").write_text(_PO, "utf-8"), _read_po, packages=("polib",)),
    "parquet": Reader(_make_parquet, _drift("t.parquet"), packages=_ARROW),
    "feather": Reader(_make_feather, _drift("t.feather"), packages=_ARROW),
    "csv": Reader(_make_csv, _drift("t.csv"), packages=_ARROW),
}
"""All readers by name."""

"""Files of tables as sources of columns: parquet and feather (Arrow IPC)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.arguments import check_path
from kslottery_fast.base.errors import InputError

from .frame_csv import open_csv
from .frame_tables import TWICE, Countable, ReadableSource, count_batches, reading

if TYPE_CHECKING:
    import pyarrow.dataset

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".ipc": "feather",
    ".csv": "csv",
    ".tsv": "csv",
}
_COMPRESSED = (".gz", ".bz2", ".zst")
_BATCH_ROWS = 1 << 16


def open_file(path: Any, name: str) -> ReadableSource:
    """Return the source of a file, or of a folder of parquet files.

    Parameters
    ----------
    path : str or path
        The file or folder.
    name : str
        The name of the argument.

    Returns
    -------
    ReadableSource

    Raises
    ------
    InputError
        No such file, an unknown format, or a damaged file.
    """
    place = check_path(path, name)
    if not place.exists():
        raise InputError(f"{name} {place}: no such file")
    if place.is_dir():
        files = sorted(place.rglob("*.parquet"))
        if not files:
            raise InputError(f"{name} {place} is a folder without .parquet files; give a file")
        return _open_dataset(files, "parquet", str(place))
    suffixes = [suffix.lower() for suffix in place.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in _COMPRESSED
    suffix = "".join(suffixes[-2:-1] if compressed else suffixes[-1:])
    kind = _FORMATS.get(suffix)
    if kind is None or (compressed and kind != "csv"):
        raise InputError(f"{name} {place} has an unknown suffix: expected {', '.join(_FORMATS)}, or .csv.gz")
    return open_csv(place) if kind == "csv" else _open_dataset([place], kind, str(place))


@dataclass
class FileTable:
    """Parquet or feather files, whose columns are read one by one. See :class:`~.frame_tables.ReadableSource`."""

    label: str
    types: dict[str, Any]
    rows: int
    kind: str
    data: pyarrow.dataset.Dataset
    on_disk: bool = True

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Read whole columns."""
        with reading(self.label, self.kind):
            table = self.data.to_table(columns=list(names))
        return {name: table.column(name) for name in names}

    def batches(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Read the columns in pieces of 65,536 rows, one row group at a time."""
        with reading(self.label, self.kind):
            # Without reading ahead, one row group of the columns is in memory.
            for batch in self.data.to_batches(
                columns=list(names), batch_size=_BATCH_ROWS, batch_readahead=1, fragment_readahead=1
            ):
                yield {name: batch.column(name) for name in names}

    def count(self, columns: Mapping[str, Countable], side: int) -> None:
        """Count the columns piece by piece."""
        count_batches(self, columns, side)


def _open_dataset(files: list[Path], kind: str, label: str) -> FileTable:
    import pyarrow as pa
    from pyarrow import dataset

    with reading(label, kind):
        data = dataset.dataset([str(file) for file in files], format=kind)
        schemas = [data.schema]
        if len(files) > 1:
            schemas = [fragment.physical_schema for fragment in data.get_fragments()]
        types = common_types([[(field.name, field.type) for field in schema] for schema in schemas], "files")
        if len(files) > 1:
            known = pa.schema([(name, found) for name, found in types.items() if not isinstance(found, str)])
            data = dataset.dataset([str(file) for file in files], known, kind)
        rows = data.count_rows()
    return FileTable(label, types, rows, kind, data)


def common_types(pieces: Sequence[Sequence[tuple[str, Any]]], what: str) -> dict[str, Any]:
    """Return a type for each column that holds its values in all pieces, or the reason why there is none.

    Parameters
    ----------
    pieces : sequence of sequence of (str, pyarrow type)
        The columns of each piece.
    what : str
        What a message calls the pieces.
    """
    import pyarrow as pa

    found: dict[str, list[Any]] = {}
    for columns in pieces:
        for name, kind in columns:
            found.setdefault(name, []).append(kind)
    twice = {name for columns in pieces for name, count in Counter(each for each, _ in columns).items() if count > 1}
    types: dict[str, Any] = {}
    for name, kinds in found.items():
        own = list(dict.fromkeys(str(kind) for kind in kinds))
        try:
            schema = pa.unify_schemas([pa.schema([(name, kind)]) for kind in kinds], promote_options="permissive")
            types[name] = TWICE if name in twice else schema.field(0).type
        except pa.ArrowException:
            types[name] = TWICE if name in twice else f"different types in its {what}: {' and '.join(own[:3])}"
    return types

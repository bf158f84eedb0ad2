"""CSV files as sources of columns. Small ones are read whole, and large ones in pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.errors import InputError

from .frame_tables import TWICE, Countable, ReadableSource, arrow_table, count_batches, not_utf8, reading

if TYPE_CHECKING:
    import pyarrow as pa

_WHOLE = 1 << 28  # bytes of a file that is read whole
_HEAD = 1 << 16  # bytes in which the first line ends
_DELIMITERS = ",;\t|"
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # by the mark at the beginning of a file


def open_csv(path: Path) -> ReadableSource:
    """Return the source of a CSV file.

    Parameters
    ----------
    path : Path
        The file. It may be compressed.

    Returns
    -------
    ReadableSource

    Raises
    ------
    InputError
        No CSV, or texts that are not UTF-8.
    """
    from pyarrow import csv

    layout = _layout(path)
    if path.stat().st_size > _WHOLE:
        return _open_large(path, layout)
    with reading(str(path), "CSV"):
        table = csv.read_csv(str(path), parse_options=layout)
        _refuse_other_encodings(table.schema, str(path))
        return arrow_table(table, str(path))  # reads the names, which may be of another encoding


@dataclass
class LargeCsv:
    """A CSV file that is read in pieces, from the start for each pass. See :class:`~.frame_tables.ReadableSource`."""

    label: str
    types: dict[str, Any]
    rows: int
    layout: Any
    on_disk: bool = True

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Read whole columns."""
        import pyarrow as pa

        pieces: dict[str, list[Any]] = {name: [] for name in names}
        for batch in self.batches(names):
            for name, piece in batch.items():
                pieces[name].append(piece)
        return {name: pa.chunked_array(found, type=self.types[name]) for name, found in pieces.items()}

    def batches(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Read the columns in pieces of about one MiB of text."""
        from pyarrow import csv

        kinds = {name: self.types[name] for name in names}
        convert = csv.ConvertOptions(column_types=kinds, include_columns=list(names))
        with reading(self.label, "CSV"), csv.open_csv(self.label, None, self.layout, convert) as reader:
            for batch in reader:
                yield {name: batch.column(name) for name in names}

    def count(self, columns: Mapping[str, Countable], side: int) -> None:
        """Count the columns piece by piece."""
        count_batches(self, columns, side)


def _open_large(path: Path, layout: Any) -> LargeCsv:
    """Read all fields as texts, to find a type for each column that fits all its rows."""
    import pyarrow as pa
    from pyarrow import csv

    with reading(str(path), "CSV"):
        with csv.open_csv(str(path), None, layout) as reader:
            names = reader.schema.names
        texts = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
        counts = Counter(names)
        candidates = {name: _candidates() for name in names if counts[name] == 1}
        rows = 0
        with csv.open_csv(str(path), None, layout, texts) as reader:
            for batch in reader:
                rows += batch.num_rows
                for name, left in candidates.items():
                    _narrow(left, batch.column(name))
    types: dict[str, Any] = {name: candidates[name][0] if counts[name] == 1 else TWICE for name in names}
    return LargeCsv(str(path), types, rows, layout)


def _candidates() -> list[pa.DataType]:
    """Return the types that a column of CSV may have, in the order in which pyarrow tries them."""
    import pyarrow as pa

    zone = pa.timestamp("ns", "UTC")
    return [
        pa.null(),
        pa.int64(),
        pa.bool_(),
        pa.date32(),
        pa.time32("s"),
        pa.timestamp("s"),
        pa.timestamp("ns"),
        zone,
        pa.float64(),
        pa.string(),
    ]


def _narrow(candidates: list[pa.DataType], texts: Any) -> None:
    """Remove the first candidates until one fits these texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if texts.null_count == len(texts):
        return
    trimmed = pc.utf8_trim_whitespace(texts)
    while len(candidates) > 1:
        if candidates[0] != pa.null():
            try:
                _cast(texts, trimmed, candidates[0])
                return
            except pa.ArrowException:
                pass
        candidates.pop(0)


def _cast(texts: Any, trimmed: Any, kind: pa.DataType) -> None:
    """Refuse texts that pyarrow's reader of CSV does not take as this type. It reads some types with spaces around."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_time(kind):  # no text can be cast to a time, but to a timestamp
        pc.binary_join_element_wise("1970-01-01", trimmed, " ").cast(pa.timestamp("s"))
    else:
        (texts if kind == pa.bool_() or pa.types.is_timestamp(kind) else trimmed).cast(kind)


def _refuse_other_encodings(schema: pa.Schema, path: str) -> None:
    """Refuse a file with texts that are not UTF-8. Pyarrow reads them as bytes."""
    from pyarrow import types

    for field in schema:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            raise InputError(not_utf8(path, f" in column {field.name!r}"))


def _layout(path: Path) -> Any:
    """Return the options for parsing. The delimiter is the one that occurs most often in the first line."""
    import pyarrow as pa
    from pyarrow import csv

    with reading(str(path), "CSV"), pa.input_stream(str(path)) as stream:
        head: bytes = stream.read(_HEAD)
    if (encoding := _ENCODINGS.get(head[:2])) is not None:
        raise InputError(f"{path} is {encoding}: expected UTF-8; save it as UTF-8")
    line = head.partition(b"\n")[0].decode("utf-8", "replace")
    unquoted = "".join(line.split('"')[::2])  # a name in quotes may hold other delimiters
    return csv.ParseOptions(delimiter=max(_DELIMITERS, key=unquoted.count))

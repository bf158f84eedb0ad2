"""`ks_frames` on files: the same results as in memory, whole or in passes, and one clear line for a bad file."""

from __future__ import annotations

import datetime
import functools

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
import scipy.stats

from kslottery_fast import InputError, ks_frames
from kslottery_fast.ks import frame_csv, frame_passes, frame_testing
from kslottery_fast.ks.accumulator import KsAccumulator

RNG = np.random.default_rng(1)


def table(n, shift):
    start = datetime.date(2026, 1, 1)
    values = RNG.normal(shift, size=n)
    return pa.table(
        {
            "float": values,
            "holes": pa.array(np.where(values > 1, np.nan, values), mask=values < -1),
            "integer": RNG.integers(0, 50, n) + int(10 * shift),
            "flag": values > 0.5,
            "day": pa.array([start + datetime.timedelta(days=int(7 * value)) for value in values]),
            "text": ["a"] * n,
            "constant": [3] * n,
            "gone": pa.nulls(n, pa.float64()) if shift else values,
        }
    )


REFERENCE, CURRENT = table(700, 0), table(500, 0.25)


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(content, path, row_group_size=100)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(content, path, chunksize=100)
    else:
        pyarrow.csv.write_csv(content, path)
    return path


@pytest.fixture
def in_pieces(monkeypatch):
    """Let no column fit into memory."""
    monkeypatch.setattr(frame_testing, "_GROUP_BYTES", 1)
    monkeypatch.setattr(frame_testing, "available_memory_bytes", lambda: 0)
    monkeypatch.setattr(frame_testing, "_STREAMED", 3)
    monkeypatch.setattr(frame_passes, "KsAccumulator", functools.partial(KsAccumulator, buckets=4096))
    monkeypatch.setattr(frame_csv, "_WHOLE", 0)


@pytest.mark.parametrize("suffix", ["parquet", "feather", "csv"])
def test_files_give_what_tables_in_memory_give(tmp_path, suffix):
    paths = [write(tmp_path, f"{name}.{suffix}", content) for name, content in (("r", REFERENCE), ("c", CURRENT))]
    result, expected = ks_frames(*paths), ks_frames(REFERENCE, CURRENT)
    assert result.tests == expected.tests
    assert [test.column for test in result] == ["float", "holes", "integer", "flag", "day"]
    assert list(result.skipped) == ["text", "constant", "gone"]


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize(("suffix", "alternative"), [("parquet", "two-sided"), ("feather", "greater"), ("csv", "less")])
def test_columns_that_do_not_fit_into_memory_give_the_same_in_passes(tmp_path, suffix, alternative, monkeypatch):
    paths = [write(tmp_path, f"{name}.{suffix}", content) for name, content in (("r", REFERENCE), ("c", CURRENT))]
    expected = ks_frames(REFERENCE, CURRENT, alternative=alternative, method="asymp")
    monkeypatch.setattr(frame_testing.Findings, "in_memory", None)
    result = ks_frames(*paths, alternative=alternative, method="asymp")
    assert result.tests == expected.tests
    assert result.skipped.keys() == expected.skipped.keys()
    assert result.skipped["constant"] == expected.skipped["constant"]


@pytest.mark.usefixtures("in_pieces")
def test_a_table_in_memory_is_compared_with_a_file_in_passes_and_with_a_folder(tmp_path):
    write(tmp_path, "parts/0.parquet", CURRENT.slice(0, 200))
    write(tmp_path, "parts/1.parquet", CURRENT.slice(200))
    done = []
    result = ks_frames(REFERENCE, tmp_path / "parts", progress=lambda *numbers: done.append(numbers))
    assert result.tests == ks_frames(REFERENCE, CURRENT).tests
    assert done == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.usefixtures("in_pieces")
def test_constants_are_compared_exactly_in_passes_too(tmp_path):
    integers = write(tmp_path, "a.parquet", pa.table({"a": [2**60 + 1] * 9, "same": [3] * 9}))
    floats = write(tmp_path, "b.parquet", pa.table({"a": [float(2**60)] * 9, "same": [3.0] * 9}))
    result = ks_frames(integers, floats)
    assert result["a"].statistic == 1
    assert result.skipped == {"same": "constant, with the same value in both tables"}


def test_files_of_a_folder_may_have_different_columns_and_types(tmp_path):
    write(tmp_path, "parts/0.parquet", pa.table({"x": [1, 2], "mixed": [1, 2]}))
    write(tmp_path, "parts/1.parquet", pa.table({"x": [1.5, 2.5], "mixed": ["a", "b"], "late": [5, 6]}))
    current = pa.table({"x": [1.0, 1.5, 2.0, 9.0], "mixed": [1] * 4, "late": [5, 6, 7, 8]})
    result = ks_frames(tmp_path / "parts", current)
    assert result["x"].statistic == scipy.stats.ks_2samp([1, 2, 1.5, 2.5], [1.0, 1.5, 2.0, 9.0]).statistic
    assert (result["late"].n, result["late"].missing_reference) == (2, 2)
    assert result.skipped == {"mixed": "different types in its files: int64 and string"}


def test_delimiters_in_the_quotes_of_a_name_do_not_count(tmp_path):
    (tmp_path / "a.csv").write_text('"x;1;2",y\n1,2\n3,4\n')
    assert [test.column for test in ks_frames(tmp_path / "a.csv", tmp_path / "a.csv")] == ["x;1;2", "y"]


@pytest.mark.parametrize("field", ["true", "2026-01-01", "10:00:00", "10:00", "2026-01-01 10:00:00", "1.5", "7"])
@pytest.mark.parametrize("space", ["", " "])
def test_fields_with_spaces_have_one_type_in_small_and_large_files(tmp_path, field, space, monkeypatch):
    (tmp_path / "a.csv").write_text(f"x\n{space}{field}\n")
    small = frame_csv.open_csv(tmp_path / "a.csv")
    monkeypatch.setattr(frame_csv, "_WHOLE", -1)
    large = frame_csv.open_csv(tmp_path / "a.csv")
    assert large.types == small.types
    assert large.read(["x"])["x"].to_pylist() == small.read(["x"])["x"].to_pylist()


@pytest.mark.usefixtures("in_pieces")
def test_values_that_do_not_fit_leave_a_column_out_in_passes_too(tmp_path):
    far = pa.table({"a": pa.array([1, 10**12], pa.timestamp("s")), "b": [1.0, 2.0]})
    fine = pa.table({"a": pa.array([1], pa.timestamp("ns")), "b": [3.0]})
    result = ks_frames(write(tmp_path, "far.parquet", far), write(tmp_path, "fine.parquet", fine))
    assert [test.column for test in result] == ["b"]
    assert result.skipped["a"].startswith("values that timestamp[ns] cannot hold")


@pytest.mark.usefixtures("in_pieces")
def test_a_column_whose_d_takes_too_many_passes_is_named_with_its_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_passes, "_MOST_PASSES", 1)
    monkeypatch.setattr(frame_passes, "KsAccumulator", functools.partial(KsAccumulator, buckets=16))
    values = pa.table({"a": RNG.normal(size=300)})
    path = write(tmp_path, "a.parquet", values)
    result = ks_frames(path, write(tmp_path, "b.parquet", pa.table({"a": RNG.normal(size=300)})))
    assert result.skipped["a"].startswith("after 1 passes, D is known to be between 0.")


@pytest.mark.usefixtures("in_pieces")
def test_types_of_a_large_csv_fit_all_rows_as_if_it_were_read_whole(tmp_path, monkeypatch):
    text = "a;b;c;d;e\n1; 2 ;;x;2026-01-01\n2;NA;;y;2026-01-02 12:00:00\n2.5;3;;1;\n"
    path = tmp_path / "mixed.csv"
    path.write_text(text, encoding="utf-8")
    later = [datetime.datetime(2027, 1, 1)]
    streamed = ks_frames(path, pl.DataFrame({"a": [7.5], "b": [9], "c": [1], "d": [1], "e": later}))
    found = {test.column: (test.n, test.missing_reference) for test in streamed}
    assert found == {"a": (3, 0), "b": (2, 1), "e": (2, 1)}
    assert streamed.skipped == {"c": "all values are missing", "d": "different types: text and int64"}
    monkeypatch.undo()
    whole = ks_frames(path, pl.DataFrame({"a": [7.5], "b": [9], "e": later}))
    assert whole.tests == streamed.tests


BAD_FILES = {
    "missing.parquet": (None, "reference .*missing.parquet: no such file"),
    "empty.parquet": (b"", "empty.parquet cannot be read as parquet"),
    "empty.csv": (b"", r"empty.csv cannot be read as CSV \(Empty CSV file\)"),
    "header.csv": (b"a,b\n", "header.csv has no rows"),
    "ragged.csv": (b"a,b\n1,2\n3\n", "ragged.csv cannot be read as CSV .*Expected 2 columns, got 1"),
    "latin.csv": ("a,t\n1,ok\n2,caf\xe9\n".encode("latin-1"), "latin.csv is not UTF-8.*; save it as UTF-8"),
    "header_latin.csv": ("a,caf\xe9\n1,2\n".encode("latin-1"), "header_latin.csv is not UTF-8"),
    "wide.csv": ("a,b\n1,2\n".encode("utf-16"), "wide.csv is UTF-16: expected UTF-8"),
    "table.xlsx": (b"PK", "table.xlsx has an unknown suffix: expected .parquet, "),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_clear_line(tmp_path, name, large, monkeypatch):
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if large:
        monkeypatch.setattr(frame_csv, "_WHOLE", -1)
    with pytest.raises(InputError, match=message) as caught:
        ks_frames(tmp_path / name, CURRENT)
    assert "\n" not in str(caught.value)


def test_truncated_and_damaged_parquet_files_and_folders_without_files_are_refused(tmp_path):
    path = write(tmp_path, "a.parquet", REFERENCE)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a.parquet cannot be read as parquet \(.*\); write it again"):
        ks_frames(REFERENCE, path)
    path.write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    with pytest.raises(InputError, match=r"a.parquet cannot be read as parquet \(.*\); write it again"):
        ks_frames(REFERENCE, path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"is a folder without \.parquet files"):
        ks_frames(tmp_path / "nothing", REFERENCE)

"""Safetensors files that are damaged, or that change while they are read: each is one line that names the file."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors
import torch
from stored_tables import NAME, D, V, refused, write

from kslottery_fast import InputError
from kslottery_fast.checkpoints import safetensors_file
from kslottery_fast.checkpoints.opening import open_checkpoint
from kslottery_fast.checkpoints.tensors import row_blocks
from kslottery_fast.tickets.scan import scan_checkpoints
from kslottery_fast.tickets.stored import ks_select_checkpoints


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is cut short: it has 0 bytes"),
        (b"hello, this is text", "is not a safetensors file"),
        (b"PK\x03\x04\x00\x00\x08\x08 zip", "is a pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 jP", "is a pickle"),
        (b"GGUF\x03\x00\x00\x00\x01\x02", "is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_not_safetensors(pair, tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    refused(pair[0], path, str(path), message)


# The reason is that of the safetensors library; of a header that it cannot parse, old releases say no more than PARSED.
PARSED = "InvalidHeaderDeserialization"
LENGTH = "invalid header length|InvalidHeaderLength"
SHAPE = "invalid shape, data type, or offset|TensorInvalidInfo"
OFFSET = "(invalid offset for tensor|InvalidOffset)"
COVERED = "not fully covered|MetadataIncompleteBuffer"


def damaged(before: Path, after: Path, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        ks_select_checkpoints(before, after)
    start = re.escape(f"{after} is cut short or damaged (Error while deserializing header: ")
    assert re.fullmatch(rf"{start}.*({reason}).*\); copy or download it again", str(caught.value))


@pytest.mark.parametrize(
    ("length", "header", "reason"),
    [
        (16, b"{}", LENGTH),
        (2, b"[]", f"invalid type: sequence|{PARSED}"),
        (2, b"{x", f"key must be a string|{PARSED}"),
        pytest.param(200_000, b"[" * 200_000, f"invalid type: sequence|{PARSED}", id="deep"),
    ],
)
def test_a_header_that_is_none(pair, tmp_path, length, header, reason):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header)
    damaged(pair[0], path, reason)


def entry(begin: int, end: int, name: str = NAME, **changes: object) -> str:
    fields = {"dtype": "F32", "shape": [(end - begin) // 4, 1], "data_offsets": [begin, end]} | changes
    return f"{json.dumps(name)}: {json.dumps(fields)}"


def write_header(path: Path, entries: str, size: int) -> Path:
    header = f"{{{entries}}}".encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return path


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        pytest.param(entry(0, 8, shape=[3, 1]), 8, SHAPE, id="more numbers than bytes"),
        pytest.param(entry(0, 8, shape=[-2, 1]), 8, f"invalid value: integer `-2`|{PARSED}", id="negative shape"),
        pytest.param(entry(8, 0, shape=[2, 1]), 8, OFFSET, id="negative length"),
        pytest.param(entry(0, 8, data_offsets=None), 8, f"invalid type: null|{PARSED}", id="no offsets"),
        pytest.param(entry(0, 8), 12, COVERED, id="bytes after the last tensor"),
        pytest.param("", 4, COVERED, id="bytes of no tensor"),
        pytest.param(entry(4, 12), 12, f"{OFFSET}.*{NAME}", id="gap at the start"),
        pytest.param(f"{entry(0, 8)}, {entry(12, 16, 'b')}", 16, f"{OFFSET}.*b", id="gap"),
        pytest.param(f"{entry(4, 12, 'b')}, {entry(0, 8)}", 12, f"{OFFSET}.*b", id="overlap"),
        pytest.param(f"{entry(0, 8)}, {entry(8, 16)}", 16, f"{OFFSET}.*{NAME}", id="name twice"),
        pytest.param(
            '"__metadata__": {}, "__metadata__": {}', 0, f"duplicate field `__metadata__`|{PARSED}", id="metadata twice"
        ),
        pytest.param(
            entry(0, 8).replace('"shape"', '"dtype": "F32", "shape"'),
            8,
            f"duplicate field `dtype`|{PARSED}",
            id="key twice",
        ),
    ],
)
def test_a_header_that_the_safetensors_library_refuses(pair, tmp_path, header, size, reason):
    damaged(pair[0], write_header(tmp_path / "bad.safetensors", header, size), reason)


def test_a_dtype_that_the_safetensors_library_does_not_know(pair, tmp_path):
    path = write_header(tmp_path / "new.safetensors", f"{entry(0, 8)}, {entry(8, 12, 'b', dtype='F3_NEW')}", 12)
    if safetensors.__version__.startswith(("0.4.", "0.5.")):
        damaged(pair[0], path, PARSED)
    else:
        what = f"dtype F3_NEW, which safetensors {safetensors.__version__} does not know: upgrade safetensors"
        refused(pair[0], path, f"{path} holds a tensor of {what}")


def test_tensors_may_stand_in_any_order_and_be_empty(tmp_path):
    path = tmp_path / "good.safetensors"
    header = f"{{{entry(4, 12)}, {entry(0, 4, 'b')}, {entry(4, 4, 'empty')}}}".encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.arange(3.0).numpy().tobytes())
    tensors = safetensors_file.read_header(path)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {NAME: (2, 1), "b": (1, 1), "empty": (0, 1)}
    ((_, block, _),) = row_blocks(tensors[NAME], tensors[NAME], 1 << 20)
    assert block.tolist() == [[1.0], [2.0]]


def test_a_table_without_rows_may_claim_rows_of_any_length(tmp_path):
    path = tmp_path / "empty.safetensors"
    header = json.dumps({NAME: {"dtype": "F32", "shape": [0, 10**9], "data_offsets": [0, 0]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for options in ({}, {"top_k": 2}, {"correction": "bonferroni"}, {"method": "exact"}):
        assert ks_select_checkpoints(path, path, **options).dimension == 10**9
    assert scan_checkpoints(path, path, method="exact").tensors[0].rows == 0


@pytest.mark.parametrize("size", [2**62, 2**64 - 1])
def test_a_dimension_that_no_tensor_can_have_is_refused(pair, tmp_path, size):
    path = tmp_path / "bad.safetensors"
    header = f"{{{entry(0, 0, shape=[0, size])}}}".encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(pair[0], path, f"{path} is damaged: tensor {NAME} has shape [0, {size}]")


def test_names_that_the_system_cannot_take_are_input_errors(pair, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {NAME: "x" * 5000}}))
    refused(pair[0], index, str(tmp_path / "xxx"), "cannot be read: File name too long")
    refused(pair[0], Path("y" * 5000), "cannot be read: File name too long")


def test_a_path_that_is_not_utf8(pair):
    path = Path(os.fsdecode(bytes(pair[1].with_name("after")) + b"\xff.safetensors"))
    try:
        pair[1].rename(path)
    except OSError:
        pytest.skip("the file system has UTF-8 names only")
    assert ks_select_checkpoints(pair[0], path).vocab_size == V


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="memory and swap are read from /proc")
def test_a_file_larger_than_memory_and_swap(pair, tables, tmp_path):
    sizes = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    size = 1024 * (int(sizes["MemTotal:"]) + int(sizes["SwapTotal:"])) + (1 << 30)
    path, rest = tmp_path / "large.safetensors", entry(4 * V * D, size, "rest", dtype="U8", shape=[size - 4 * V * D])
    write_header(path, f"{entry(0, 4 * V * D, shape=[V, D])}, {rest}", 0)
    start = path.stat().st_size
    try:
        os.truncate(path, 16 << 20)
        if path.stat().st_blocks * 512 > 1 << 20:
            pytest.skip("the file system has no sparse files")
        os.truncate(path, start + size)
    except OSError as error:
        pytest.skip(f"the file system has no file of {size} bytes: {error}")
    with path.open("r+b") as file:
        file.seek(start)
        file.write(tables[1].numpy().tobytes())
    assert ks_select_checkpoints(pair[0], path).token_ids.equal(ks_select_checkpoints(*pair).token_ids)
    assert scan_checkpoints(pair[0], path).tensors == scan_checkpoints(*pair).tensors


@pytest.mark.parametrize("missing", [1, 5000])
def test_a_file_that_is_cut_short(pair, missing):
    os.truncate(pair[1], pair[1].stat().st_size - missing)
    damaged(*pair, COVERED)


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash(pair):
    def cut(done: int, total: int) -> None:
        os.truncate(pair[1], 1000)

    refused(*pair, f"{pair[1]} changed while it was read", block_bytes=4096, progress=cut)


def test_a_file_that_becomes_another_while_its_header_is_read_is_an_error(pair, monkeypatch):
    def replace(*_args: object) -> None:
        pair[1].rename(pair[0])

    monkeypatch.setattr(safetensors_file, "safe_open", replace)
    refused(*pair, f"{pair[0]} changed while it was read")


def _write_another(path: Path) -> None:
    write(path, torch.zeros(V, D), "another")


def _write_other_dtype(path: Path) -> None:
    write(path, torch.zeros(V // 2, D, dtype=torch.float64))


def _write_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(0, 0))  # whatever the resolution of the clock


def _replace_by_one_of_its_size_and_time(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


CHANGES = [_write_another, _write_other_dtype, _write_in_place, _replace_by_one_of_its_size_and_time]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_becomes_another_between_header_and_rows_is_an_error(pair, change):
    first, second = (open_checkpoint(path)[NAME] for path in pair)
    change(pair[1])
    with pytest.raises(InputError, match=r"after\.safetensors changed while it was read: .*; try again"):
        next(row_blocks(first, second, 1 << 20))


def test_a_file_that_is_gone_between_header_and_rows_is_an_error(pair):
    first, second = (open_checkpoint(path)[NAME] for path in pair)
    pair[1].unlink()
    with pytest.raises(InputError, match=r"after\.safetensors cannot be read: No such file or directory"):
        next(row_blocks(first, second, 1 << 20))


def test_too_little_address_space_is_an_error(pair, monkeypatch):
    def none(*_args: object) -> None:
        raise MemoryError("Cannot allocate memory (os error 12)")

    monkeypatch.setattr(safetensors_file, "safe_open", none)
    refused(*pair, f"{pair[0]} cannot be read: Cannot allocate memory")


def test_a_block_that_cannot_be_mapped_is_an_error(pair, monkeypatch):
    def none(*_args: object, **_options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(safetensors_file.mmap, "mmap", none)
    refused(*pair, f"{pair[0]} cannot be read: Cannot allocate memory")


def test_a_file_that_may_not_be_read(pair, monkeypatch):
    def denied(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(*pair, f"{pair[0]} cannot be read: Permission denied")


def test_blocks_cover_every_row_once_and_never_exceed_their_size(pair):
    first, second = (open_checkpoint(path)[NAME] for path in pair)
    rows = 0
    for start, before, after in row_blocks(first, second, 5 * 2 * D * 4 + 3):
        assert start == rows
        assert before.shape == after.shape
        assert len(before) == min(5, V - start)
        rows += len(before)
    assert rows == V

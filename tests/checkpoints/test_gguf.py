"""GGUF files, written by the package gguf: names, shapes, numbers row by row, and files that are damaged."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import gguf
import pytest
import torch
from gguf_models import write_gguf
from safetensors.torch import save_file
from stored_tables import refused, write

from kslottery_fast import InputError, ks_select
from kslottery_fast.checkpoints.gguf_file import decodable, open_gguf
from kslottery_fast.checkpoints.gguf_header import parse_gguf_header, read_gguf_header
from kslottery_fast.checkpoints.opening import open_checkpoint
from kslottery_fast.tickets.scan import scan_checkpoints
from kslottery_fast.tickets.stored import ks_select_checkpoints

V, D = 40, 256
EMBEDDING = "token_embd.weight"
QUANTIZED = [
    kind.name for kind in gguf.GGMLQuantizationType if kind.name not in ("F64", "F32", "F16") and decodable(kind.name)
]


def table(seed: int = 0) -> torch.Tensor:
    return torch.randn(V, D, generator=torch.Generator().manual_seed(seed))


def bits(rows: torch.Tensor) -> torch.Tensor:
    """Numbers as bytes: random blocks hold NaN."""
    return rows.float().contiguous().view(torch.int32)


@pytest.fixture
def moved() -> tuple[torch.Tensor, torch.Tensor]:
    before = table()
    after = before.clone()
    after[[5, 17]] = 3 * before[[5, 17]] + 2
    return before, after


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *QUANTIZED])
def test_rows_are_those_of_the_package_gguf_in_any_block(tmp_path, kind):
    expected = write_gguf(tmp_path / "m.gguf", {"other.weight": (table(1), "F32"), EMBEDDING: (table(), kind)})
    tensor = open_checkpoint(tmp_path / "m.gguf")[EMBEDDING]
    assert tensor.shape == (V, D)
    for start, stop in ((0, V), (3, 4), (7, 30), (V, V)):
        rows = tensor.rows(start, stop)
        assert rows.dtype == tensor.floats
        assert torch.equal(bits(rows), bits(expected[EMBEDDING][start:stop]))
    assert {"Q4_0", "Q4_K", "Q6_K", "Q8_0"} <= set(QUANTIZED)


def test_the_header_has_the_tensors_and_entries_that_the_library_reads(tmp_path):
    write_gguf(tmp_path / "m.gguf", {EMBEDDING: (table(), "Q4_0"), "cube": (table().view(4, 10, D), "Q8_0")}, tokens=9)
    header, _ = read_gguf_header(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    for tensor in reader.tensors:
        entry = header.tensors[tensor.name]
        found = entry.type_name, list(entry.shape), entry.offset, entry.nbytes
        assert found == (tensor.tensor_type.name, tensor.shape.tolist()[::-1], tensor.data_offset, tensor.n_bytes)
    assert len(header.tensors) == 2
    assert header.entries["tokenizer.ggml.tokens"] == 9
    assert header.architecture == "llama"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_two_gguf_files_of_one_type_are_compared_as_their_numbers_are(tmp_path, moved, recwarn, kind):
    before, after = (
        write_gguf(tmp_path / f"{name}.gguf", {EMBEDDING: (each, kind)})[EMBEDDING]
        for name, each in zip(("a", "b"), moved, strict=True)
    )
    tickets = ks_select_checkpoints(tmp_path / "a.gguf", tmp_path / "b.gguf", block_bytes=7 * 8 * D)
    expected = ks_select(before, after)
    assert tickets.token_ids.equal(expected.token_ids)
    assert tickets.statistic.equal(expected.statistic)
    assert sorted(tickets) == [5, 17]
    assert not recwarn.list


def test_gguf_against_safetensors_finds_both_tables_and_warns_of_rounding(tmp_path, moved):
    path = write(tmp_path / "before.safetensors", moved[0])
    write_gguf(tmp_path / "after.gguf", {EMBEDDING: (moved[1], "Q8_0"), "output.weight": (moved[0], "F32")})
    with pytest.warns(
        RuntimeWarning, match=r"after\.gguf, tensor token_embd.weight was quantized \(GGUF Q8_0\).*round"
    ):
        tickets = ks_select_checkpoints(path, tmp_path / "after.gguf")
    assert sorted(tickets) == [5, 17]
    save_file({"lm_head.weight": moved[0].clone(), "model.embed_tokens.weight": moved[0]}, path)
    with pytest.warns(RuntimeWarning, match="no row"):
        assert len(ks_select_checkpoints(path, tmp_path / "after.gguf", table="output")) == 0


def test_a_gguf_file_without_a_head_is_tied(tmp_path, moved):
    for name, each in zip(("a", "b"), moved, strict=True):
        write_gguf(tmp_path / f"{name}.gguf", {EMBEDDING: (each, "F16")})
    tickets = ks_select_checkpoints(tmp_path / "a.gguf", tmp_path / "b.gguf", table="output")
    assert (sorted(tickets), tickets.table) == ([5, 17], "shared")


def test_two_types_of_one_model_warn(tmp_path, moved):
    write_gguf(tmp_path / "a.gguf", {EMBEDDING: (moved[0], "Q8_0")})
    write_gguf(tmp_path / "b.gguf", {EMBEDDING: (moved[1], "Q4_0")})
    with pytest.warns(
        RuntimeWarning, match=r"quantized in two ways \(GGUF Q8_0; GGUF Q4_0\): rounding moves every row"
    ):
        ks_select_checkpoints(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_a_folder_with_one_model_is_opened_and_with_several_is_not(tmp_path, moved):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_gguf(folder / "a.gguf", {EMBEDDING: (moved[0], "F32")})
    assert list(open_checkpoint(folder)) == [EMBEDDING]
    write_gguf(folder / "b.gguf", {EMBEDDING: (moved[0], "F32")})
    with pytest.raises(InputError, match=r"folder has 2 GGUF files: pass one of them \(a\.gguf, b\.gguf\)"):
        open_checkpoint(folder)


def test_a_model_in_parts_is_one_checkpoint(tmp_path, moved):
    first, second = (tmp_path / f"m-0000{part}-of-00002.gguf" for part in (1, 2))
    write_gguf(first, {EMBEDDING: (moved[0], "F32")})
    with pytest.raises(
        InputError, match=r"m-00002-of-00002\.gguf: no such file, but m-00001-of-00002\.gguf is one of 2"
    ):
        open_gguf(first)
    write_gguf(second, {"output.weight": (moved[1], "Q8_0")})
    for path in (first, second, tmp_path):
        assert set(open_checkpoint(path)) == {EMBEDDING, "output.weight"}
    write_gguf(second, {EMBEDDING: (moved[1], "Q8_0")})
    with pytest.raises(InputError, match="which another part holds too"):
        open_gguf(first)


def test_a_type_that_is_not_decoded_is_refused_by_name(tmp_path, moved):
    path = tmp_path / "m.gguf"
    write_gguf(path, {EMBEDDING: (moved[0], "Q8_0")})
    content = path.read_bytes()
    place = content.index(EMBEDDING.encode()) + len(EMBEDDING) + 4 + 16
    for raw_type, name in ((9, "Q8_1"), (2000, "type 2000")):
        path.write_bytes(content[:place] + struct.pack("<I", raw_type) + content[place + 4 :] + bytes(9999))
        refused(path, path, f"is of the GGUF type {name}, which the package gguf", "does not decode: upgrade gguf")


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (0, b"GGML", "m.gguf is not a GGUF file"),
        (4, b"\x01\0\0\0", "is GGUF of version 1: expected 2 or 3"),
        (4, b"\0\0\0\x03", "is GGUF of version 50331648"),
        (8, b"\xff" * 8, "is damaged: it claims 18446744073709551615 parts"),
        (24, b"\xff" * 8, "is cut short: its header tells of more than its"),
        (32, b"\xff", "is damaged: a name in its header is not UTF-8"),
    ],
)
def test_a_header_that_is_damaged_is_one_line(tmp_path, moved, place, new, message):
    path = tmp_path / "m.gguf"
    write_gguf(path, {EMBEDDING: (moved[0], "Q8_0")})
    content = path.read_bytes()
    path.write_bytes(content[:place] + new + content[place + len(new) :])
    refused(path, path, message)


class Recorded(io.BytesIO):
    """A file that remembers the largest read that it was asked for."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.most = max(self.most, size or 0)
        return super().read(size)


@pytest.mark.parametrize(("place", "what"), [(24, "a key"), (24 + 8 + len("general.architecture") + 4, "a value")])
def test_a_damaged_length_in_a_large_file_asks_for_no_memory(tmp_path, moved, place, what):
    path = tmp_path / "m.gguf"
    write_gguf(path, {EMBEDDING: (moved[0], "Q8_0")})
    content = path.read_bytes()
    assert struct.unpack("<Q", content[place : place + 8])[0] < 99, what
    file = Recorded(content[:place] + struct.pack("<Q", 10**11) + content[place + 8 :])
    with pytest.raises(InputError, match=r"^m.gguf is damaged: a text in its header claims 100,000,000,000 bytes; "):
        parse_gguf_header("m.gguf", file, 10**15)
    assert file.most <= 1 << 20


def test_every_cut_of_a_file_is_one_line(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {EMBEDDING: (table()[:1], "Q8_0")})
    content = path.read_bytes()
    last = read_gguf_header(path)[0].tensors[EMBEDDING]
    for size in range(4, last.offset + last.nbytes, 7):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="is cut short"):
            open_gguf(path)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, moved):
    path = tmp_path / "m.gguf"
    write_gguf(path, {EMBEDDING: (moved[0], "Q8_0")})
    tensor = open_gguf(path)[EMBEDDING]
    write_gguf(path, {EMBEDDING: (moved[0][:9], "Q4_0")})
    with pytest.raises(InputError, match=r"m\.gguf changed while it was read"):
        tensor.rows(0, 3)


def test_without_the_package_gguf_the_message_names_the_extra(tmp_path, moved, monkeypatch):
    write_gguf(tmp_path / "m.gguf", {EMBEDDING: (moved[0], "Q8_0")})
    monkeypatch.setattr("kslottery_fast.base.extras.find_spec", lambda _name: None)
    refused(tmp_path / "m.gguf", tmp_path / "m.gguf", "needs gguf; pip install 'kslottery-fast[gguf]'")


def test_a_gguf_file_under_another_name_says_so(tmp_path, moved):
    write_gguf(tmp_path / "m.safetensors", {EMBEDDING: (moved[0], "Q8_0")})
    refused(Path(tmp_path / "m.safetensors"), tmp_path, "is a GGUF file whose name says otherwise", "ends in .gguf")


def test_an_adapter_in_gguf_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(tmp_path / "lora.gguf", tmp_path, "is an adapter in GGUF")


def test_scan_of_two_gguf_files_marks_the_tables(tmp_path, moved):
    for name, each in zip(("a", "b"), moved, strict=True):
        tensors = {EMBEDDING: (each, "Q8_0"), "output.weight": (each, "F32"), "blk.0.ffn_up.weight": (each, "Q4_0")}
        write_gguf(tmp_path / f"{name}.gguf", tensors)
    scan = scan_checkpoints(tmp_path / "a.gguf", tmp_path / "b.gguf")
    found = [(shift.kind, shift.layer, shift.mark, shift.changed_rows) for shift in scan.tensors]
    assert found == [("token_embd", None, "*", 2), ("ffn_up", 0, "", 2), ("output", None, "+", 2)]


LLAMA = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj.weight",
    "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj.weight",
    "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
    "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
    "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
}


@pytest.mark.parametrize("prefix", ["", "language_model."])
@pytest.mark.parametrize("reversed_", [False, True])
def test_scan_of_gguf_against_safetensors_pairs_the_matrices(tmp_path, prefix, reversed_):
    tensors = {name: table(seed) for seed, name in enumerate(LLAMA)}
    write_gguf(tmp_path / "a.gguf", {name: (each, "F32") for name, each in tensors.items()}, blocks=2)
    others = {prefix + LLAMA[name]: each.clone() for name, each in tensors.items()}
    others[f"{prefix}lm_head.weight"][7] += 3
    save_file(others | {"vision.layers.1.mlp.down_proj.weight": table(9)}, tmp_path / "b.safetensors")
    paths = [tmp_path / "a.gguf", tmp_path / "b.safetensors"]
    scan = scan_checkpoints(*(paths[::-1] if reversed_ else paths))
    compared = {name for own, name in LLAMA.items() if "attn_q" not in own and "attn_k" not in own}
    assert {shift.name: shift.changed_rows for shift in scan.tensors} == {
        prefix + name: int(name == "lm_head.weight") for name in compared
    }
    assert [shift.mark for shift in scan.tensors if shift.name.endswith("embed_tokens.weight")] == ["*"]
    assert scan.notes == [
        f"2 tensors of {paths[0]} are not compared: the conversion to GGUF may have put their rows in another order or "
        "changed their numbers (attention queries and keys)"
    ]


def test_an_architecture_without_names_is_told(tmp_path):
    write_gguf(tmp_path / "a.gguf", {"x.weight": (table(), "F32")}, architecture="of-tomorrow")
    save_file({"x.weight": table(), EMBEDDING: table()}, tmp_path / "b.safetensors")
    scan = scan_checkpoints(tmp_path / "a.gguf", tmp_path / "b.safetensors")
    assert [shift.name for shift in scan.tensors] == ["x.weight"]
    assert "the package gguf does not know the names of the architecture 'of-tomorrow'" in scan.notes

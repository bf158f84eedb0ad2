"""Selecting from checkpoints on disk gives the tickets of the whole tables, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from stored_tables import BLOCKS, NAME, D, V, write

from kslottery_fast import InputError, ks_select
from kslottery_fast.checkpoints.tensors import row_blocks
from kslottery_fast.tickets.stored import ks_select_checkpoints

OPTIONS = [
    {},
    {"alpha": 0.3},
    {"method": "asymp"},
    {"method": "paper", "alpha": 0.01},
    {"correction": "bonferroni"},
    {"correction": "bh"},
    {"top_k": 7},
    {"top_k": 7, "alpha": None},
    {"top_k": 1000},
    {"alpha": 1e-30},
    {"alpha": 1e-30, "correction": "bh"},
    {"alpha": 1e-60, "correction": "bonferroni"},
]


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_tickets_and_warnings_are_those_of_the_whole_tables(tables, pair, options, block_bytes):
    with warnings.catch_warnings(record=True) as expected_notes:
        warnings.simplefilter("always")
        expected = ks_select(*tables, **options)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        found = ks_select_checkpoints(*pair, block_bytes=block_bytes, **options)
    assert found == expected
    assert [str(note.message) for note in notes] == [str(note.message) for note in expected_notes]


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "float32"), ("float64", "bfloat16")])
def test_every_pair_of_floating_dtypes_gives_the_tickets_of_the_whole_tables(tables, tmp_path, dtypes, block_bytes):
    first, second = (table.to(getattr(torch, dtype)) for table, dtype in zip(tables, dtypes, strict=True))
    paths = write(tmp_path / "a.safetensors", first), write(tmp_path / "b.safetensors", second)
    assert ks_select_checkpoints(*paths, block_bytes=block_bytes) == ks_select(first, second)


def test_a_table_that_is_not_aligned_in_its_file_is_read_right(tables, tmp_path):
    def unaligned(path: Path, table: torch.Tensor) -> Path:
        data, flag = table.numpy().tobytes(), {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
        entry = {"dtype": "F32", "shape": [V, D], "data_offsets": [1, 1 + len(data)]}
        header = json.dumps({"flag": flag, NAME: entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x01" + data)
        return path

    paths = unaligned(tmp_path / "a.safetensors", tables[0]), unaligned(tmp_path / "b.safetensors", tables[1])
    assert ks_select_checkpoints(*paths, block_bytes=4096) == ks_select(*tables)


def test_empty_tables_give_empty_tickets(tmp_path):
    path = write(tmp_path / "a.safetensors", torch.zeros(0, 8))
    for options in ({}, {"top_k": 2}, {"correction": "bh"}):
        assert ks_select_checkpoints(path, path, **options) == ks_select(
            torch.zeros(0, 8), torch.zeros(0, 8), **options
        )


def test_progress_counts_rows_which_are_read_once_also_if_nothing_is_selected(pair):
    calls: list[tuple[int, int]] = []
    ks_select_checkpoints(*pair, block_bytes=50 * 2 * D * 4, progress=lambda *call: calls.append(call))
    assert calls == [(50, V), (100, V), (150, V), (200, V), (V, V)]
    calls.clear()
    with pytest.warns(RuntimeWarning, match="no row is significant"):
        ks_select_checkpoints(*pair, alpha=1e-30, progress=lambda *call: calls.append(call))
    assert calls == [(V, V)]


def test_a_checkpoint_compared_with_itself_says_so(pair):
    with pytest.warns(
        RuntimeWarning, match=r"no row differs between .*before.safetensors, tensor .* both are the same"
    ):
        assert len(ks_select_checkpoints(pair[0], pair[0])) == 0


def test_a_checkpoint_of_reordered_rows_is_not_called_the_same_model(tables, pair, tmp_path):
    flipped = tables[0].clone()
    flipped[[4, 200]] = tables[0][[4, 200]].flip(1)
    path = write(tmp_path / "flipped.safetensors", flipped)
    for block_bytes in BLOCKS:
        with pytest.warns(RuntimeWarning, match=r"but 2 rows hold them in another order \(token ids 4, 200\)"):
            assert len(ks_select_checkpoints(pair[0], path, block_bytes=block_bytes)) == 0


def test_rows_that_are_not_identical_are_read_again_and_no_others(tables, tmp_path, monkeypatch):
    flipped = tables[0].clone()
    flipped[[4, 200]] = tables[0][[4, 200]].flip(1)
    paths = write(tmp_path / "a.safetensors", tables[0]), write(tmp_path / "flipped.safetensors", flipped)
    read: list[int] = []

    def counted(*arguments):
        for block in row_blocks(*arguments):
            read.append(block[0])
            yield block

    monkeypatch.setattr("kslottery_fast.tickets.stored.row_blocks", counted)
    with pytest.warns(RuntimeWarning, match=r"\(token ids 4, 200\)"):
        ks_select_checkpoints(*paths, block_bytes=50 * 2 * D * 4)
    assert read == [0, 50, 100, 150, 200, 0, 200]


# --- where the table is found ---


@pytest.mark.parametrize("first", ["before", "before/model.safetensors", "before-sharded"])
@pytest.mark.parametrize("second", ["after", "after-sharded", "after-sharded/model.safetensors.index.json"])
def test_files_folders_and_shards_may_be_mixed(llamas, first, second):
    root, expected = llamas
    assert set(expected.token_ids.tolist()) == set(range(40, 60))
    assert ks_select_checkpoints(root / first, root / second) == expected
    assert ks_select_checkpoints(str(root / first), str(root / second)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "wte.weight",
        "embed_tokens.weight",
        "shared.weight",
        "model.decoder.embed_tokens.weight",
        "gpt_neox.embed_in.weight",
        "transformer.word_embeddings.weight",
        "bert.embeddings.word_embeddings.weight",
        "tok_embeddings.weight",
        "base_model.model.model.embed_tokens.weight",
        "model.language_model.embed_tokens.weight",
    ],
)
def test_auto_knows_the_names_of_input_embeddings(tables, tmp_path, name):
    # The others are no ends of names: "per_layer" is of Gemma 3n, positions are of GPT-2.
    others = {"model.embed_tokens_per_layer.weight": torch.zeros(V, 4), "transformer.wpe.weight": torch.zeros(8, D)}
    paths = [write(tmp_path / f"{i}.safetensors", tables[i], name, **others) for i in (0, 1)]
    assert ks_select_checkpoints(*paths) == ks_select(*tables)


def test_auto_takes_the_shared_table_of_a_seq2seq_model(tables, tmp_path):
    copies = {f"{part}.embed_tokens.weight": torch.zeros(V, D) for part in ("encoder", "decoder")}
    paths = [write(tmp_path / f"{i}.safetensors", tables[i], "shared.weight", **copies) for i in (0, 1)]
    assert ks_select_checkpoints(*paths) == ks_select(*tables)


def test_auto_takes_the_head_of_a_tied_model_that_was_saved_without_its_embedding(tables, tmp_path):
    before = write(tmp_path / "before" / "model.safetensors", tables[0])
    after = write(tmp_path / "after" / "model.safetensors", tables[1], "lm_head.weight")
    with pytest.raises(InputError, match="no tensor has the name of an input embedding"):
        ks_select_checkpoints(before, after)
    (tmp_path / "after" / "config.json").write_text(json.dumps({"tie_word_embeddings": True, "vocab_size": V}))
    assert ks_select_checkpoints(before, after) == ks_select(*tables)


def test_before_and_after_may_call_the_tensor_differently(tables, tmp_path):
    paths = write(tmp_path / "a.safetensors", tables[0], "x"), write(tmp_path / "b.safetensors", tables[1], "y")
    assert ks_select_checkpoints(*paths, tensor=("x", "y")) == ks_select(*tables)
    with pytest.raises(TypeError, match="tensor is 3: expected 'auto', a name, or the two names"):
        ks_select_checkpoints(*paths, tensor=3)


def test_vocab_size_of_config_json_decides_between_two_tables(tables, tmp_path):
    other = {"vision.embed_tokens.weight": torch.zeros(9, D)}
    paths = [write(tmp_path / f"{i}" / "model.safetensors", tables[i], **other) for i in (0, 1)]
    with pytest.raises(
        InputError, match=r"2 tensors may be the input embedding; name it with tensor=; its 2-D .* \[203, 64\], vision"
    ):
        ks_select_checkpoints(*paths)
    for path in paths:
        (path.parent / "config.json").write_text(json.dumps({"text_config": {"vocab_size": V}}))
    assert ks_select_checkpoints(*paths) == ks_select(*tables)
    (paths[1].parent / "config.json").write_text(json.dumps({"vocab_size": 7}))
    with pytest.raises(InputError, match=r"is \[\d+, 64\], but config.json has vocab_size 7; name it with tensor="):
        ks_select_checkpoints(*paths)


# --- memory ---


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_tables(tmp_path):
    script = Path(__file__).parent / "large_pair.py"
    size = ["--rows", "6000", "--dimension", "8192", "--changed", "all"]  # 98 MB each
    output = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *size], capture_output=True, text=True, check=True, timeout=120
    )
    result = json.loads(output.stdout)
    assert result["tickets"] == result["rows_shifted"] > 0
    assert result["file_bytes"] > 95e6
    assert result["private_bytes"] < 50e6
    assert result["resident_bytes"] < 95e6  # a block of both, and code that was not loaded before

"""Selecting from checkpoints on disk: the same tickets as from whole tables, bounded memory, errors that help."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import InputError, ks_select
from kslottery_fast.integrations import tensor_files
from kslottery_fast.integrations.checkpoints import ks_select_checkpoints

V, D = 203, 64
NAME = "model.embed_tokens.weight"
# One row a block, blocks that end within the table, one block.
BLOCKS = [1, 3 * 2 * D * 4, 1 << 20]
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
    {"top_k": 3, "correction": "bh"},
    {"alpha": 1e-30},
    {"alpha": 1e-30, "correction": "bh"},
    {"alpha": 1e-60, "correction": "bonferroni"},
]


@pytest.fixture(scope="module")
def tables() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(V, D, generator=generator)
    after = before.clone()
    after[::3] += 0.6 * torch.rand(len(after[::3]), 1, generator=generator)
    return before, after


def write(path: Path, table: torch.Tensor, name: str = NAME, **others: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: table, **others}, path)
    return path


@pytest.fixture
def pair(tables, tmp_path) -> tuple[Path, Path]:
    return write(tmp_path / "before.safetensors", tables[0]), write(tmp_path / "after.safetensors", tables[1])


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


def test_progress_counts_rows_and_a_second_reading_to_say_why_nothing_was_selected(pair):
    calls: list[tuple[int, int]] = []
    ks_select_checkpoints(*pair, block_bytes=50 * 2 * D * 4, progress=lambda *call: calls.append(call))
    assert calls == [(50, V), (100, V), (150, V), (200, V), (V, V)]
    calls.clear()
    with pytest.warns(RuntimeWarning, match="no row is significant"):
        ks_select_checkpoints(*pair, alpha=1e-30, progress=lambda *call: calls.append(call))
    assert calls == [(V, V), (2 * V, 2 * V)]


def test_a_checkpoint_compared_with_itself_says_so(pair):
    with pytest.warns(
        RuntimeWarning, match=r"no row differs between .*before.safetensors, tensor .* both are the same"
    ):
        assert len(ks_select_checkpoints(pair[0], pair[0])) == 0


# --- where the table is found ---


@pytest.fixture(scope="module")
def models(tiny_llama, tmp_path_factory):
    """A tiny LLaMA before and after a change of some rows: folders of one file and of several shards."""
    root = tmp_path_factory.mktemp("models")
    before, after = tiny_llama(), tiny_llama()
    with torch.no_grad():
        after.model.embed_tokens.weight[40:60] += 2
        after.model.layers[0].self_attn.q_proj.weight[:3] += 2
    for name, model in (("before", before), ("after", after)):
        model.save_pretrained(root / name)
        model.save_pretrained(root / f"{name}-sharded", max_shard_size="40KB")
    tables = [model.model.embed_tokens.weight.detach() for model in (before, after)]
    assert len(list((root / "after-sharded").glob("model-*.safetensors"))) > 2
    return root, ks_select(*tables)


@pytest.mark.parametrize("first", ["before", "before/model.safetensors", "before-sharded"])
@pytest.mark.parametrize("second", ["after", "after-sharded", "after-sharded/model.safetensors.index.json"])
def test_files_folders_and_shards_may_be_mixed(models, first, second):
    root, expected = models
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


# --- what can be wrong, each in one line that names the file ---


def refused(before: Path, after: Path, *parts: str, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        ks_select_checkpoints(before, after, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_path_that_is_missing(pair, tmp_path):
    refused(pair[0], tmp_path / "none", str(tmp_path / "none"), "no such file or folder", "must be downloaded first")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is cut short: it has 0 bytes"),
        (b"hello, this is text", "is not a safetensors file"),
        (b"PK\x03\x04\x00\x00\x08\x08 zip", "is a pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 jP", "is a pickle"),
        (b"GGUF\x03\x00\x00\x00\x01\x02", "is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "bytes are less than its header"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "its header is damaged"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{x", "its header is damaged"),
    ],
)
def test_a_file_that_is_not_safetensors(pair, tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    refused(pair[0], path, str(path), message)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 4]},
        {"data_offsets": [4, 0]},
        {"shape": [-1, D]},
        {"shape": [V + 1, D]},
        {"dtype": "F64"},
        {"data_offsets": [0.0, 4 * V * D]},
        {"data_offsets": None},
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself(pair, tmp_path, change):
    entry = {"dtype": "F32", "shape": [V, D], "data_offsets": [0, 4 * V * D]} | change
    header = json.dumps({NAME: entry}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * V * D))
    refused(pair[0], path, f"{path} is not a safetensors file: its header is damaged")


@pytest.mark.parametrize("missing", [1, 5000])
def test_a_file_that_is_cut_short(pair, missing):
    size = pair[1].stat().st_size
    with pair[1].open("r+b") as file:
        file.truncate(size - missing)
    refused(*pair, str(pair[1]), f"is cut short: {size - missing:,} bytes of {size:,}")


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash(pair):
    def cut(done: int, total: int) -> None:
        with pair[1].open("r+b") as file:
            file.truncate(1000)

    refused(*pair, str(pair[1]), "became shorter while it was read", block_bytes=4096, progress=cut)


def test_a_file_that_may_not_be_read(pair, monkeypatch):
    def denied(*_args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(*pair, f"{pair[0]} cannot be read: Permission denied")


def test_a_shard_that_is_missing_or_lacks_its_tensor(models, tmp_path):
    root, _ = models
    folder = tmp_path / "sharded"
    shutil.copytree(root / "after-sharded", folder)
    index = folder / "model.safetensors.index.json"
    shard = folder / json.loads(index.read_text())["weight_map"][NAME]
    shard.rename(tmp_path / "elsewhere")
    refused(root / "before", folder, str(shard), "no such file, but", str(index), "lacks a shard")
    save_file({"another": torch.zeros(2, 2)}, shard)
    refused(root / "before", folder, f"{shard} has no tensor {NAME}", "of different checkpoints")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not the index of a checkpoint: expected weight_map"),
        ('{"weight_map": {"a": 3}}', "is not the index of a checkpoint: expected weight_map"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "lies outside its folder"),
        ('{"weight_map": {"a": "/x.safetensors"}}', "lies outside its folder"),
        ('{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}', "is a pickle"),
    ],
)
def test_an_index_that_is_none(pair, tmp_path, content, message):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    refused(pair[0], path, str(tmp_path), message)


def test_a_pickle_is_never_read_and_the_message_says_how_to_convert_it(pair, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "training_args.bin").write_bytes(b"x")
    refused(pair[0], folder, f"{folder} holds no checkpoint: neither model.safetensors nor")
    path = folder / "pytorch_model.bin"
    torch.save({NAME: torch.zeros(V, D)}, path)
    for given in (folder, path):
        refused(pair[0], given, f"{path} is a pickle", "from_pretrained", "writes safetensors")


def test_folders_with_something_else_in_them(pair, tables, tmp_path):
    refused(pair[0], pair[0].parent, "has 2 safetensors files and no model.safetensors.index.json", "after.safetensors")
    folder = tmp_path / "adapter"
    write(folder / "adapter_model.safetensors", tables[0])
    (folder / "adapter_config.json").write_text("{}")
    refused(pair[0], folder, f"{folder} holds an adapter, not a model", "merge it")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    refused(pair[0], gguf, "is a GGUF file")


def test_a_tensor_that_is_not_there_lists_those_that_are(pair, tmp_path):
    refused(
        *pair, str(pair[0]), "has no tensor wte; its 2-D tensors: model.embed_tokens.weight [203, 64]", tensor="wte"
    )
    plain = write(tmp_path / "c.safetensors", torch.zeros(3), "bias")
    refused(
        pair[0], plain, "no tensor has the name of an input embedding", "tensor=", "it has no 2-D tensors of floats"
    )
    many = {f"m{i}": torch.zeros(i + 1, 2) for i in range(15)}
    save_file(many, tmp_path / "many.safetensors")
    refused(pair[0], tmp_path / "many.safetensors", "m14 [15, 2], m13 [14, 2]", "and 3 more")


def test_one_shard_alone_says_that_there_are_more(models):
    root, _ = models
    index = json.loads((root / "before-sharded" / "model.safetensors.index.json").read_text())
    shard = next(
        file for name, file in index["weight_map"].items() if name != NAME and file != index["weight_map"][NAME]
    )
    refused(
        root / "before-sharded" / shard, root / "after", "this is one shard of several: pass the folder or the index"
    )


def test_shapes_that_differ(pair, tables, tmp_path):
    resized = write(tmp_path / "resized.safetensors", torch.zeros(V + 5, D))
    refused(pair[0], resized, str(resized), "[203, 64]", "[208, 64]", "was the vocabulary resized", "[:203]")
    other = write(tmp_path / "other.safetensors", torch.zeros(V, D + 1))
    refused(pair[0], other, str(other), "rows of different lengths are not two states of one model")
    cube = write(tmp_path / "cube.safetensors", torch.zeros(V, 2, 2))
    refused(pair[0], cube, str(cube), "has shape [203, 2, 2]: expected [V, d]")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantized_table(pair, tmp_path, dtype):
    path = write(tmp_path / "quantized.safetensors", torch.zeros(V, D).to(dtype))
    refused(pair[0], path, f"{path}, tensor {NAME} has dtype", "expected F64, F32, F16 or BF16", "dequantize")


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"correction": "bh"}], ids=str)
def test_nan_and_inf_are_named_with_the_token_ids_of_the_whole_table(pair, tables, tmp_path, options, block_bytes):
    bad, damaged = tables[1].clone(), tables[0].clone()
    bad[[5, 17, 90, 91, 150, 202], 3] = torch.tensor(
        [torch.nan, torch.inf, -torch.inf, torch.nan, torch.nan, torch.nan]
    )
    damaged[201, 0] = torch.inf
    path = write(tmp_path / "bad.safetensors", bad)
    where = f"{path}, tensor {NAME} has NaN or Inf in 6 rows (token ids 5, 17, 90, 91, 150, ...)"
    refused(pair[0], path, where + ": training diverged", block_bytes=block_bytes, **options)
    first = write(tmp_path / "damaged.safetensors", damaged)
    both = f"{first}, tensor {NAME} has NaN or Inf in 1 row (token ids 201) and {where}"
    refused(first, path, both, "no healthy checkpoint", block_bytes=block_bytes, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0}, InputError, "alpha is 0: expected a significance level between 0 and 1"),
        ({"alpha": None}, TypeError, "alpha is None: expected a number"),
        ({"alpha": 7, "top_k": 3}, InputError, "alpha is 7"),
        ({"method": "fast"}, InputError, "method is 'fast'"),
        ({"correction": "BH"}, InputError, "correction is 'BH'"),
        ({"top_k": 0}, InputError, "top_k is 0"),
        ({"top_k": 2.0}, TypeError, "top_k is 2.0"),
        ({"block_bytes": 0}, InputError, "block_bytes is 0: expected a number of bytes"),
    ],
)
def test_bad_options_are_named_before_anything_is_read(pair, monkeypatch, options, error, message):
    monkeypatch.setattr("kslottery_fast.integrations.checkpoints.row_blocks", None)
    with pytest.raises(error, match=message):
        ks_select_checkpoints(*pair, **options)


# --- memory ---


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="private memory is read from /proc")
@pytest.mark.parametrize("changed", ["few", "all"])
def test_private_memory_does_not_grow_with_the_tables(tmp_path, changed):
    script = Path(__file__).parent / "large_pair.py"
    size = ["--rows", "12000", "--dimension", "8192", "--changed", changed]  # 197 MB each
    output = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *size], capture_output=True, text=True, check=True, timeout=120
    )
    result = json.loads(output.stdout)
    assert result["tickets"] == result["rows_shifted"] > 0
    assert result["file_bytes"] > 190e6
    assert result["private_bytes"] < 100e6


def test_blocks_cover_every_row_once_and_never_exceed_their_size(pair):
    first, second = (tensor_files.open_checkpoint(path)[NAME] for path in pair)
    rows = 0
    for start, before, after in tensor_files.row_blocks(first, second, 5 * 2 * D * 4 + 3):
        assert start == rows
        assert before.shape == after.shape
        assert len(before) == min(5, V - start)
        rows += len(before)
    assert rows == V

"""Checkpoints that are missing, incomplete or something else, and tables that cannot be compared."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from stored_tables import BLOCKS, NAME, D, V, refused, write

from kslottery_fast import InputError
from kslottery_fast.tickets.stored import ks_select_checkpoints


def test_a_path_that_is_missing(pair, tmp_path):
    refused(
        pair[0],
        tmp_path / "none",
        str(tmp_path / "none"),
        "no such file or folder, and no repository of the Hugging Face Hub, which is org/name, org/name@revision",
    )


def test_a_shard_that_is_missing_or_lacks_its_tensor(llamas, tmp_path):
    root, _ = llamas
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
        pytest.param("[" * 200_000, "is not valid JSON (maximum recursion depth", id="deep"),
        pytest.param('{"a": ' + "1" * 5000 + "}", "is not valid JSON (Exceeds the limit", id="long number"),
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
    refused(pair[0], folder, f"{folder} holds no checkpoint: it has neither model.safetensors nor")
    path = folder / "pytorch_model.bin"
    torch.save({NAME: torch.zeros(V, D)}, path)
    for given in (folder, path):
        refused(pair[0], given, f"{path} is a pickle", "from_pretrained", "writes safetensors")


def test_folders_with_something_else_in_them(pair, tables, tmp_path):
    refused(
        pair[0],
        pair[0].parent,
        "has 2 weight files and no index, and after.safetensors and before.safetensors both have a tensor model.embed",
        "so they are not one checkpoint: pass one of them (after.safetensors, before.safetensors)",
    )
    folder = tmp_path / "adapter"
    write(folder / "adapter_model.safetensors", tables[0])
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, pair[0], f"before is {folder}, an adapter: give the base model", "as BEFORE")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    refused(pair[0], gguf, f"{gguf / 'model.gguf'} is cut short")


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


def test_one_shard_alone_says_that_there_are_more(llamas):
    root, _ = llamas
    index = json.loads((root / "before-sharded" / "model.safetensors.index.json").read_text())
    shard = next(
        file for name, file in index["weight_map"].items() if name != NAME and file != index["weight_map"][NAME]
    )
    refused(
        root / "before-sharded" / shard, root / "after", "this is one shard of several: pass the folder or the index"
    )


def test_shapes_that_differ(pair, tables, tmp_path):
    resized = write(tmp_path / "resized.safetensors", torch.zeros(V + 5, D))
    refused(pair[0], resized, str(resized), "[203, 64]", "[208, 64]", "was the vocabulary resized", "--rows shared")
    other = write(tmp_path / "other.safetensors", torch.zeros(V, D + 1))
    refused(pair[0], other, str(other), "rows of different lengths are not two states of one model")
    cube = write(tmp_path / "cube.safetensors", torch.zeros(V, 2, 2))
    refused(pair[0], cube, str(cube), "has shape [203, 2, 2]: expected [V, d]")


def test_a_table_of_integers(pair, tmp_path):
    path = write(tmp_path / "quantized.safetensors", torch.zeros(V, D, dtype=torch.int8))
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
    refused(first, path, both, "this checkpoint is damaged", block_bytes=block_bytes, **options)


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
        ({"top_k": 2, "correction": "bh"}, InputError, "correction is 'bh' and top_k is 2: .* leave correction out"),
        ({"block_bytes": 0}, InputError, "block_bytes is 0: expected at least 1"),
        ({"block_bytes": True}, TypeError, "block_bytes is True: expected an integer of at least 1"),
        ({"progress": 3}, TypeError, r"progress is 3: expected a function progress\(done, total\), or None"),
        ({"progress": torch.nn.Embedding(2, 2)}, TypeError, "progress is an Embedding: expected a function"),
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer is 'gpt2': expected a tokenizer; load it first"),
        ({"tensor": 3}, TypeError, "tensor is 3: expected 'auto', a name, or the two names"),
        ({"block_bytes": "x"}, TypeError, "block_bytes is 'x': expected an integer of at least 1"),
    ],
)
def test_bad_options_are_named_before_anything_is_read(pair, monkeypatch, options, error, message):
    monkeypatch.setattr("kslottery_fast.tickets.stored.row_blocks", None)
    with pytest.raises(error, match=message):
        ks_select_checkpoints(*pair, **options)


def test_what_is_not_a_path_is_refused_by_name(pair):
    for value, told in ((None, "None"), (torch.zeros(2, 2), "a Tensor"), (3, "3")):
        for name, arguments in (("before", (value, pair[1])), ("after", (pair[0], value))):
            with pytest.raises(TypeError, match=f"^{name} is {told}: expected a path; ks_select compares models"):
                ks_select_checkpoints(*arguments)
    with pytest.raises(InputError, match=r"^before is gpt2: no such file or folder, and no repository"):
        ks_select_checkpoints("gpt2", pair[1])

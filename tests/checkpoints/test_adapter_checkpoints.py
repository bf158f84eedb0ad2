"""An adapter as AFTER: its tensors over those of the base model are those of the model that PEFT merges."""

from __future__ import annotations

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_tables import refused
from tiny_models import TOKENS, V, make, tuned

from kslottery_fast import get_rows, merge_rows, save_adapter
from kslottery_fast.checkpoints.pairs import open_pair
from kslottery_fast.checkpoints.safetensors_file import _Rows
from kslottery_fast.checkpoints.tensors import row_blocks
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.tickets.scan import _bytes_of, scan_checkpoints
from kslottery_fast.tickets.stored import ks_select_checkpoints, l2_select_checkpoints

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
D = 16


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The folder of a base model, by its architecture and whether it is tied. Each is saved once."""
    root = tmp_path_factory.mktemp("bases")

    def folder(name="llama", tied=False):
        path = root / f"{name}-{tied}"
        if not path.exists():
            make(name, tied=tied).save_pretrained(path)
        return path

    return folder


def tune(model, config, path):
    """Save a random adapter of this configuration, and return the tensors of the merged model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * (0.3 if "lora" in name else 3.0))
        wrapped.save_pretrained(path)
        return {name: each.clone() for name, each in wrapped.merge_and_unload().state_dict().items()}


def lora(**options):
    return peft.LoraConfig(r=3, lora_alpha=5, **options)


CONFIGS = {
    "TrainableTokens": ("llama", peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)),
    "LoRA with rows": ("llama", lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": TOKENS})),
    "LoRA with rows of both": (
        "llama",
        lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": TOKENS, "lm_head": [1, 2]}),
    ),
    "modules_to_save": ("llama", lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])),
    "LoRA of the tables": (
        "llama",
        lora(
            target_modules=["embed_tokens", "lm_head", "down_proj"],
            use_rslora=True,
            alpha_pattern={"layers.1.mlp.down_proj": 7},
            rank_pattern={"lm_head": 2},
        ),
    ),
    "LoRA with biases": ("phi", lora(target_modules=["q_proj", "embed_tokens"], bias="all")),
    "Conv1D": ("gpt2", lora(target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True)),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_is_that_of_the_merged_model(bases, tmp_path, kind):
    name, config = CONFIGS[kind]
    base = bases(name)
    merged = tune(make(name, tied=False), config, tmp_path / "adapter")
    first, second = open_pair(base, tmp_path / "adapter")
    assert set(first) == set(second)
    changed = set()
    for tensor in second.values():
        rows = tensor.rows(0, tensor.height).view(tensor.shape)
        torch.testing.assert_close(rows, merged[tensor.name])
        if tensor is not first[tensor.name]:
            changed.add(tensor.name)
            assert torch.equal(tensor.rows(1, tensor.height), rows.view(tensor.height, tensor.width)[1:])
    assert changed == {
        name for name in first if not torch.equal(load_file(base / "model.safetensors")[name], merged[name])
    }
    assert f"it changes {len(changed)} tensor" in second.notes[-1]


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_an_adapter_are_the_ones_that_moved(bases, tmp_path, recwarn, tied):
    config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)
    tune(make("llama", tied=tied), config, tmp_path / "adapter")
    base = bases(tied=tied)
    for block_bytes in (1, 1000, 1 << 20):
        rows = l2_select_checkpoints(base, tmp_path / "adapter", 3, block_bytes=block_bytes)
        assert sorted(rows) == sorted(TOKENS)
    tickets = ks_select_checkpoints(base, tmp_path / "adapter", alpha=0.9)
    assert set(tickets) <= set(TOKENS)
    assert len(tickets)
    assert set(ks_select_checkpoints(base, tmp_path / "adapter" / "adapter_model.safetensors", alpha=0.9)) == set(
        tickets
    )
    scan = scan_checkpoints(base, tmp_path / "adapter")
    assert [(shift.name, shift.changed_rows) for shift in scan.tensors if shift.changed_rows] == [(EMBEDDING, 3)]
    told = f"{tmp_path / 'adapter'} is an adapter; it changes 1 tensor of {base}"
    assert scan.notes == [told]
    if tied:
        head = ks_select_checkpoints(base, tmp_path / "adapter", alpha=0.9, table="output")
        assert (head.table, set(head)) == ("shared", set(tickets))
    assert {str(note.message) for note in recwarn.list if note.category is RuntimeWarning} == {told}


@pytest.mark.parametrize(("tied", "output"), [(False, "frozen"), (True, "tied"), (True, "frozen"), (True, "own")])
def test_adapters_of_this_package(bases, tmp_path, tied, output):
    model = tuned(make("llama", tied=tied), output=output)
    if output == "own":
        with torch.no_grad():
            get_rows(model).row_sets["default"].output.rows.add_(2.0)
    save_adapter(model, tmp_path / "adapter")
    first, second = open_pair(bases(tied=tied), tmp_path / "adapter")
    merge_rows(model)
    state = model.state_dict()
    apart = {HEAD} if tied and output != "tied" else set()
    assert set(second) == set(first) | apart
    for name in {EMBEDDING, HEAD} & set(second):
        torch.testing.assert_close(second[name].rows(0, V), state[name], rtol=0, atol=0)


def test_bias_entries_of_the_head(bases, tmp_path):
    model = tuned(make("phi", tied=False), output="own")
    with torch.no_grad():
        get_rows(model).row_sets["default"].output.bias.add_(1.5)
    with pytest.warns(RuntimeWarning, match="bias"):
        save_adapter(model, tmp_path / "adapter")
    _, second = open_pair(bases("phi"), tmp_path / "adapter")
    merge_rows(model)
    assert torch.equal(second["lm_head.bias"].rows(0, 1)[0], model.state_dict()["lm_head.bias"])


def test_weights_that_an_older_peft_pickled(bases, tmp_path):
    config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)
    merged = tune(make("llama", tied=False), config, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    for given in (tmp_path / "adapter", path.with_suffix(".bin")):
        _, second = open_pair(bases(), given)
        assert torch.equal(second[EMBEDDING].rows(0, V), merged[EMBEDDING])


def test_select_prints_what_moved_and_what_rounding_does(bases, tmp_path, capsys):
    config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)
    tune(make("llama", tied=False), config, tmp_path / "adapter")
    assert cli.main(["select", str(bases()), str(tmp_path / "adapter"), "--alpha", "0.9", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["token_ids"]) <= set(TOKENS)
    table = load_file(bases() / "model.safetensors")[EMBEDDING]
    save_file({EMBEDDING: table.to(torch.float8_e4m3fn)}, tmp_path / "fp8.safetensors")
    assert cli.main(["select", str(bases()), str(tmp_path / "fp8.safetensors"), "--alpha", "0.9", "--json"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "was quantized (FP8 E4M3 without scales) and the other table was not: rounding moves every row" in told


def test_rows_of_the_base_are_read_once(bases, tmp_path, monkeypatch):
    config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)
    tune(make("llama", tied=False), config, tmp_path / "adapter")
    first, second = (each[EMBEDDING] for each in open_pair(bases(), tmp_path / "adapter"))
    expected = second.rows(0, V)
    monkeypatch.setattr(type(second), "opened", None)
    blocks = list(row_blocks(first, second, 1000))
    assert len(blocks) > 1
    assert torch.equal(torch.cat([rows for _, _, rows in blocks]), expected)


def test_a_scan_reads_no_byte_of_the_base_twice(bases, tmp_path, monkeypatch):
    config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)
    tune(make("llama", tied=False), config, tmp_path / "adapter")
    first, second = open_pair(bases(), tmp_path / "adapter")
    read, map_rows = [], _Rows.rows
    monkeypatch.setattr(_Rows, "rows", lambda *block: read.append(block[1:]) or map_rows(*block))
    scan = scan_checkpoints(bases(), tmp_path / "adapter", block_bytes=1 << 30)
    assert [shift.name for shift in scan.tensors if shift.changed] == [EMBEDDING]
    # One block of each tensor, and the rows of the adapter.
    assert len(read) == 1 + len([tensor for tensor in first.values() if tensor.floats])
    assert second[HEAD] is first[HEAD]
    assert _bytes_of((first[HEAD], second[HEAD]), V) == first[HEAD].nbytes
    assert _bytes_of((first[EMBEDDING], second[EMBEDDING]), V) == first[EMBEDDING].nbytes


def test_scales_of_the_base_are_no_rounding_of_the_adapter(bases, tmp_path):
    tune(make("llama", tied=False), lora(target_modules=["q_proj"]), tmp_path / "adapter")
    down = "model.layers.0.mlp.down_proj.weight"
    tensors = load_file(bases() / "model.safetensors")
    scaled = {down: tensors[down].to(torch.float8_e4m3fn), f"{down}_scale": torch.ones(1)}
    save_file(tensors | scaled, tmp_path / "base.safetensors")
    scan = scan_checkpoints(tmp_path / "base.safetensors", tmp_path / "adapter")
    assert [note for note in scan.notes if "quantized in" in note] == []  # these rows are read from one file


def test_names_with_another_prefix_are_found(bases, tmp_path):
    config = lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": TOKENS})
    merged = tune(make("llama", tied=False), config, tmp_path / "adapter")
    tensors = load_file(bases() / "model.safetensors")
    renamed = {name.replace("model.", "language_model.model.", 1): each for name, each in tensors.items()}
    save_file(renamed, tmp_path / "base.safetensors")
    _, second = open_pair(tmp_path / "base.safetensors", tmp_path / "adapter")
    for layer in (0, 1):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        torch.testing.assert_close(second[f"language_model.{name}"].rows(0, D), merged[name])


def test_a_base_in_half_precision_keeps_the_rows_of_the_adapter_in_full(bases, tmp_path):
    config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)
    tune(make("llama", tied=False), config, tmp_path / "adapter")
    tensors = load_file(bases() / "model.safetensors")
    save_file({name: each.bfloat16() for name, each in tensors.items()}, tmp_path / "base.safetensors")
    _, second = open_pair(tmp_path / "base.safetensors", tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows = second[EMBEDDING].rows(0, V)
    assert torch.equal(rows[TOKENS], next(iter(stored.values())))
    rest = [row for row in range(V) if row not in TOKENS]
    assert torch.equal(rows[rest], tensors[EMBEDDING][rest].bfloat16().float())


def altered(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft_type": "IA3"}, ["is a IA3 adapter: expected LoRA or TrainableTokens; merge it"]),
        ({"peft_type": "LORA", "use_dora": True}, ["is a LORA adapter with use_dora: expected LoRA"]),
        ({"token_indices": [5, 7, V]}, [f"has a row for token {V}, but {EMBEDDING} of", "is [60, 16]: give the base"]),
        ({"token_indices": [5, 7]}, ["has rows [3, 16] for 2 token ids, but"]),
        ({"token_indices": [5, 7, 7]}, ["has a token id twice for the rows of model.embed_tokens"]),
        ({"token_indices": [5, 7, -1]}, ["has no list of token ids for the rows of model.embed_tokens"]),
        ({"token_indices": None}, ["has no list of token ids for the rows of model.embed_tokens"]),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(bases, tmp_path, changes, parts):
    config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)
    tune(make("llama", tied=False), config, tmp_path / "adapter")
    altered(tmp_path / "adapter", **changes)
    refused(bases(), tmp_path / "adapter", str(tmp_path / "adapter"), *parts)


def test_an_adapter_of_another_model_is_one_line(bases, tmp_path):
    adapter = tmp_path / "adapter"
    tune(make("llama", tied=False), lora(target_modules=["q_proj"]), adapter)
    refused(
        bases("gpt2"), adapter, "changes model.layers.0.self_attn.q_proj.weight, which", "does not have: give the base"
    )
    stored = load_file(adapter / "adapter_model.safetensors")
    q_proj = "base_model.model.model.layers.1.self_attn.q_proj"
    wide = stored | {f"{q_proj}.lora_A.weight": torch.ones(3, D + 1)}
    save_file(wide, adapter / "adapter_model.safetensors")
    refused(bases(), adapter, "has lora_A.weight [3, 17], lora_B.weight [16, 3], but model.layers.1", "is [16, 16]")
    del wide[f"{q_proj}.lora_A.weight"]
    save_file(wide, adapter / "adapter_model.safetensors")
    refused(bases(), adapter, "alpha 5 and rank 0 of model.layers.1.self_attn.q_proj give no scale")
    save_file(stored | {"prompt_embeddings": torch.ones(3)}, adapter / "adapter_model.safetensors")
    refused(bases(), adapter, "holds tensor prompt_embeddings, which is no part of LoRA or TrainableTokens")
    altered(adapter, lora_alpha="x")
    save_file(stored, adapter / "adapter_model.safetensors")
    refused(bases(), adapter, "alpha 'x' and rank 3 of model.layers.0.self_attn.q_proj give no scale")
    save_file({}, adapter / "adapter_model.safetensors")
    refused(bases(), adapter, "adapter_model.safetensors holds no tensors")
    (adapter / "adapter_model.safetensors").unlink()
    refused(bases(), adapter, "has no adapter_model.safetensors: save the adapter again")
    (adapter / "adapter_config.json").write_text("[]")
    refused(bases(), adapter, "is not the configuration of an adapter")


def test_an_adapter_as_before_is_refused_with_what_to_do(bases, tmp_path):
    tune(make("llama", tied=False), lora(target_modules=["q_proj"]), tmp_path / "adapter")
    refused(tmp_path / "adapter", bases(), "an adapter: give the base model that it was trained on as BEFORE")


def test_a_table_of_another_height_is_an_error(bases, tmp_path):
    model = make("llama", tied=False)
    model.resize_token_embeddings(V + 4)
    tune(model, lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"]), tmp_path / "adapter")
    refused(bases(), tmp_path / "adapter", "[60, 16]", "[64, 16]", "was the vocabulary resized")


def test_a_quantized_base_is_told(bases, tmp_path):
    tune(make("llama", tied=False), lora(target_modules=["q_proj"]), tmp_path / "adapter")
    tensors = load_file(bases() / "model.safetensors")
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {q_proj: tensors[q_proj].to(torch.int8)}, tmp_path / "base.safetensors")
    why = "has dtype I8, so the adapter cannot be applied; give a base model that is not quantized"
    refused(tmp_path / "base.safetensors", tmp_path / "adapter", q_proj, "has dtype I8: expected F64", tensor=q_proj)
    _, second = open_pair(tmp_path / "base.safetensors", tmp_path / "adapter")
    assert second[q_proj].note == why
    fp8 = tensors | {q_proj: tensors[q_proj].to(torch.float8_e4m3fn)}
    save_file(fp8, tmp_path / "base.safetensors")
    scan = scan_checkpoints(tmp_path / "base.safetensors", tmp_path / "adapter")
    assert [note for note in scan.notes if "rounding" in note] == []  # the same rounding lies under both
    assert sum(shift.changed_rows for shift in scan.tensors if shift.name == q_proj) == D

"""Adapters of rows of both tables against PEFT itself: what we write it loads, and what it writes we load."""

from __future__ import annotations

import copy
import json
import shutil

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import batch, logits, make
from torch import nn

from kslottery_fast import add_rows, attach_rows, get_rows, merge_rows, untie_output
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows import get_output_rows, has_rows, output_role
from kslottery_fast.rows.adapter_file import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter

INPUT, OUTPUT = [7, 5, 40], [40, 11, 7, 2]
PAIRS = {"other": (INPUT, OUTPUT), "equal": (INPUT, None), "one": ([7], None), "order": (INPUT, INPUT[::-1])}


def both(model: nn.Module, ids: list[int], output_ids: list[int] | None) -> nn.Module:
    attach_rows(model, ids, output="own", output_ids=output_ids)
    with torch.no_grad():
        for parameter in get_rows(model).row_sets.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def base_of(name: str, tied: bool) -> nn.Module:
    return make(name) if tied else untie_output(make(name))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        *(("llama", pair) for pair in PAIRS),
        *((name, "equal") for name in ("gemma", "gpt2", "opt", "t5")),
        ("t5", "one"),
    ],
)
def test_peft_gives_the_logits_of_our_merged_model_and_we_load_the_same_rows(name, tied, pair, tmp_path):
    base = base_of(name, tied)
    model = both(copy.deepcopy(base), *PAIRS[pair])
    save_adapter(model, tmp_path / "a")
    again = load_adapter(copy.deepcopy(base), tmp_path / "a")
    assert output_role(again) == "own"
    for got, want in zip(
        (get_rows(again), get_output_rows(again)), (get_rows(model), get_output_rows(model)), strict=True
    ):
        assert got.token_ids.tolist() == want.token_ids.tolist()
        assert torch.equal(got.rows, want.rows)
    want = logits(merge_rows(model), batch(base))
    assert torch.equal(logits(merge_rows(again), batch(base)), want)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a").eval()
    assert torch.equal(logits(theirs, batch(base)), want)
    assert (want - logits(base, batch(base))).abs().max() > 0.1


@pytest.mark.parametrize(
    ("tied", "head_ids", "weight_tying"),
    [  # PEFT refuses to tie two different lists
        (True, INPUT, True),
        (True, INPUT, False),
        (True, OUTPUT, False),
        (False, INPUT, True),
        (False, INPUT, False),
        (False, OUTPUT, True),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_adapter_of_both_modules_that_peft_trained_loads_here(name, tied, head_ids, weight_tying, tmp_path):
    base = base_of(name, tied)
    table = "embed_tokens" if name == "llama" else "wte"
    config = peft.LoraConfig(
        target_modules="dummy-target-modules",
        trainable_token_indices={table: INPUT, "lm_head": head_ids},
        ensure_weight_tying=weight_tying,
    )
    trained = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    want = logits(trained.eval(), batch(base))
    trained.save_pretrained(tmp_path)
    ours = load_adapter(copy.deepcopy(base), tmp_path)
    assert output_role(ours) == ("tied" if tied and head_ids == INPUT else "own")
    close(logits(ours, batch(base)), want)
    assert torch.equal(logits(merge_rows(ours), batch(base)), want)


def test_one_list_for_two_untied_modules_in_trainable_tokens_loads_as_rows_of_both(tmp_path):
    base = base_of("llama", tied=False)
    config = peft.TrainableTokensConfig(token_indices=INPUT, target_modules=["embed_tokens", "lm_head"])
    trained = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    want = logits(trained.eval(), batch(base))
    trained.save_pretrained(tmp_path)
    ours = load_adapter(base, tmp_path)
    assert output_role(ours) == "own"
    assert torch.equal(logits(merge_rows(ours), batch(base)), want)


@pytest.mark.parametrize("pair", ["other", "equal", "one"])
@pytest.mark.parametrize("tied", [True, False])
def test_bias_entries_are_kept_in_a_form_that_peft_refuses(tied, pair, tmp_path):
    base = base_of("phi", tied)
    model = both(copy.deepcopy(base), *PAIRS[pair])
    with pytest.warns(RuntimeWarning, match="the output head has a bias, which PEFT drops"):
        save_adapter(model, tmp_path / "a")
    again = load_adapter(copy.deepcopy(base), tmp_path / "a")
    assert torch.equal(get_output_rows(again).row_bias, get_output_rows(model).row_bias)
    assert torch.equal(logits(again, batch(base)), logits(model, batch(base)))
    with pytest.raises((ValueError, KeyError)):
        peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a")
    assert "PEFT cannot load it" in (tmp_path / "a" / "README.md").read_text()
    other = make("llama", tied=tied)
    with pytest.raises(InputError, match="has bias entries of a head, and the head of this model has no bias"):
        load_adapter(other, tmp_path / "a")
    assert not has_rows(other)


def test_adapters_of_both_tables_load_beside_each_other(tmp_path):
    base = base_of("llama", tied=False)
    for name, pair in (("a", "other"), ("b", "equal")):
        save_adapter(both(copy.deepcopy(base), *PAIRS[pair]), tmp_path / name)
    model = load_adapter(copy.deepcopy(base), tmp_path / "a", name="a")
    load_adapter(model, tmp_path / "b", name="b")
    assert get_rows(model).row_sets["b"].output.token_ids.tolist() == INPUT
    save_adapter(attach_rows(copy.deepcopy(base), INPUT), tmp_path / "frozen")
    with pytest.raises(InputError, match="output='frozen', but the attached rows have output='own'"):
        load_adapter(model, tmp_path / "frozen", name="c")
    add_rows(model, "c", [3])


def test_rows_of_a_head_that_do_not_fit_are_refused_and_the_model_stays_as_it_was(tmp_path):
    base = base_of("llama", tied=False)
    save_adapter(both(copy.deepcopy(base), *PAIRS["other"]), tmp_path / "a")
    config = json.loads((tmp_path / "a" / CONFIG_FILE).read_text())
    assert config["trainable_token_indices"] == {"model.embed_tokens": INPUT, "lm_head": OUTPUT}
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "a", damaged)
    with safe_open(damaged / WEIGHTS_FILE, "pt") as file:
        metadata = file.metadata() | {"kslottery_output_token_ids": "[3]"}
    save_file(load_file(damaged / WEIGHTS_FILE), damaged / WEIGHTS_FILE, metadata)
    with pytest.raises(InputError, match="has a damaged list of the head's tokens"):
        load_adapter(base, damaged)
    with pytest.raises(InputError, match="has rows of an output head, and this model has none of that name"):
        load_adapter(base.model, tmp_path / "a")
    low = copy.deepcopy(base)
    low.lm_head = nn.Linear(16, 20, bias=False)
    with pytest.raises(InputError, match=r"indices of the head has 40, outside 0..19"):
        load_adapter(low, tmp_path / "a")
    assert not has_rows(low)
    assert not has_rows(base)


def test_bias_entries_that_are_too_few_are_refused(tmp_path):
    base = base_of("phi", tied=False)
    with pytest.warns(RuntimeWarning, match="the output head has a bias"):
        save_adapter(both(copy.deepcopy(base), *PAIRS["other"]), tmp_path / "a")
    with safe_open(tmp_path / "a" / WEIGHTS_FILE, "pt") as file:
        metadata = file.metadata()
    tensors = {
        key: value[:2] if key.endswith("bias") else value
        for key, value in load_file(tmp_path / "a" / WEIGHTS_FILE).items()
    }
    save_file(tensors, tmp_path / "a" / WEIGHTS_FILE, metadata)
    with pytest.raises(InputError, match="has a damaged list of the head's tokens"):
        load_adapter(base, tmp_path / "a")
    assert not has_rows(base)

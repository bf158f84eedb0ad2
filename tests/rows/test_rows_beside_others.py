"""Rows on models that other libraries change as well: what they froze, where they move things, how they copy."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import warnings
from contextlib import nullcontext

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import TOKENS, Int8Embedding, batch, logits, make, tuned
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kslottery_fast import add_rows, attachment, detach_rows, merge_rows, mixed_rows, overlay, row_sets, rowset
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attach_rows, get_rows
from kslottery_fast.rows.tables import is_tied

LORA = peft.LoraConfig(r=2, target_modules=["q_proj"])
PROMPT = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("take_off", [detach_rows, merge_rows])
@pytest.mark.parametrize("config", [LORA, PROMPT], ids=["lora", "prompt"])
class TestWhatPeftFrozeStaysFrozen:
    def test_when_the_rows_came_first(self, config, take_off):
        model = peft.get_peft_model(attach_rows(make("llama"), TOKENS), config)
        adapter = trained(model)
        assert adapter
        assert not any("row_sets" in name for name in adapter)
        assert trained(take_off(model)) == adapter

    @pytest.mark.parametrize("freeze", [True, False])
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_when_peft_came_first(self, config, take_off, freeze, wrapped):
        base = make("llama")
        model = peft.get_peft_model(base, config)
        adapter = trained(model)
        target = model if wrapped else base
        attach_rows(target, TOKENS, freeze=freeze)
        rows = {name for name in trained(model) if name.endswith("row_sets.default.rows")}
        assert len(rows) == 1
        assert (trained(model) == rows) or not freeze or config is PROMPT
        assert (trained(model) == rows | adapter) or freeze
        take_off(target)
        assert trained(model) == adapter


def test_what_attach_rows_froze_trains_again_once_peft_is_off():
    model = attach_rows(make("llama"), TOKENS)
    names = set(dict(make("llama").named_parameters()))
    peft.get_peft_model(model, LORA).unload()
    assert trained(detach_rows(model)) == names


def test_a_parameter_that_was_switched_on_or_off_since_keeps_its_flag():
    model = make("llama")
    model.model.norm.weight.requires_grad_(False)
    others = trained(model)
    attach_rows(model, TOKENS, freeze=False)
    model.model.norm.weight.requires_grad_(True)
    up = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    name = next(name for name, parameter in model.named_parameters() if parameter is up)
    assert trained(detach_rows(model)) == others - {name} | {"model.norm.weight"}


def test_rows_that_peft_froze_say_so_once_and_only_in_training():
    model = peft.get_peft_model(attach_rows(make("llama"), TOKENS), LORA).eval()
    inputs = batch(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model(**inputs)
        with torch.no_grad():
            model.train()(**inputs)
    with pytest.warns(
        RuntimeWarning, match=r"rows are read in training but do not train.*after it, or get_rows"
    ) as seen:
        model(**inputs)
    assert [each.filename for each in seen if each.category is RuntimeWarning] == [__file__]  # the caller's line
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model(**inputs)
        attach_rows(peft.get_peft_model(make("llama"), LORA), TOKENS, freeze=False).train()(**inputs)


def test_every_set_that_does_not_train_says_so():
    model = add_rows(attach_rows(make("llama"), TOKENS).train(), "fr", [9])
    get_rows(model).row_sets["fr"].rows.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model(**batch(model))
    with pytest.warns(RuntimeWarning, match="do not train"), mixed_rows(model, ["default", "fr"]):
        model(**batch(model))


class TestIdsFollowTheRowsToAnotherDevice:
    """Fake tensors have a device and no values; "lazy:0" is one that needs no hardware. Ops that mix devices raise."""

    @pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.20"), reason="transformers computes positions on no such device"
    )
    @pytest.mark.parametrize("mixed", [False, True])
    @pytest.mark.parametrize("name", ["llama", "gemma", "phi", "quantized"])
    def test_where_only_parameters_and_buffers_are_moved_as_fsdp2_and_data_parallel_do(self, name, mixed):
        model = make("llama" if name == "quantized" else name, tied=name != "quantized")
        if name == "quantized":
            model.set_input_embeddings(Int8Embedding(model.get_input_embeddings()))
        attach_rows(model, [5, 0, 7], output="tied" if is_tied(model) else "frozen")
        add_rows(model, "fr", [9])
        inputs = {"input_ids": batch(model)["input_ids"]}
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            mixed_rows(model, ["fr", "default"]) if mixed else nullcontext(),
        ):
            there = {
                key: value.detach().to("lazy:0").requires_grad_(value.requires_grad)
                for key, value in [*model.named_parameters(), *model.named_buffers()]
            }
            inputs = {key: value.to("lazy:0") for key, value in inputs.items()}
            logits = torch.func.functional_call(model, there, kwargs=inputs).logits
            logits.square().mean().backward()
        assert logits.device == torch.device("lazy:0")
        assert there["model.embed_tokens.row_sets.default.rows"].grad is not None
        # and are not moved in every forward
        assert get_rows(model).row_sets["default"]._slots.device == torch.device("lazy:0")

    def test_where_the_ids_are_read_first(self):
        row_set = get_rows(attach_rows(make("llama"), TOKENS)).row_sets["default"]
        with FakeTensorMode(allow_non_fake_inputs=True):
            row_set.rows = nn.Parameter(row_set.rows.detach().to("lazy:0"))
            assert row_set.slots.device == row_set.token_ids.device == row_set.rows.device

    def test_and_keep_their_values_through_a_device_without_any(self):
        model = attach_rows(nn.Embedding(20, 4), TOKENS[:2])
        slots = get_rows(model).slots.clone()
        assert model.to("meta")(torch.zeros(3, dtype=torch.int64, device="meta")).shape == (3, 4)
        assert get_rows(model).token_ids.tolist() == TOKENS[:2]
        assert torch.equal(get_rows(model.to_empty(device="cpu")).slots, slots)


def by_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), by_file])
@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("llama", "frozen"),
        ("llama", "tied"),
        ("gemma", "frozen"),
        ("gemma", "tied"),
        ("t5", "tied"),
        ("int8", "frozen"),
    ],
)
def test_copies_by_pickle_and_deepcopy_are_whole_and_independent(name, output, copied):
    model = make("llama" if name == "int8" else name, tied=name != "int8")
    if name == "int8":
        model.set_input_embeddings(Int8Embedding(model.get_input_embeddings()))
    base = logits(model, batch(model))
    add_rows(tuned(model, output=output), "fr", [9])
    want = logits(model, batch(model))
    assert not torch.equal(want, base)
    other = copied(model)
    with torch.no_grad():
        get_rows(model).rows.zero_()
    assert torch.equal(logits(other, batch(other)), want)
    classes = [type(module) for module in model.modules()]
    assert [type(module) for module in other.modules()] == classes
    assert is_tied(other) == is_tied(model)
    assert row_sets(other) == ("default", "fr")
    with pytest.raises(InputError, match="save_pretrained would write a checkpoint"):
        other.save_pretrained("never")
    assert torch.equal(logits(detach_rows(other), batch(other)), base)
    assert [type(module) for module in other.modules()] != classes


@pytest.mark.parametrize("output", ["frozen", "tied"])
def test_a_pickle_with_the_names_of_version_0_1_loads(output, monkeypatch):
    model = tuned(make("llama"), output=output)
    want = logits(model, batch(model))
    del get_rows(model).row_sets.switch  # which version 0.1 did not have, and neither these guards
    for module in model.modules():
        for name in ("push_to_hub", "set_input_embeddings", "set_output_embeddings"):
            vars(module).pop(name, None)
    for home in (attachment, overlay, rowset):
        for name in home.__all__:
            monkeypatch.setattr(getattr(home, name), "__module__", home.__name__)
    data = pickle.dumps(model)
    monkeypatch.undo()
    named = {text for _, text, _ in pickletools.genops(data) if str(text).startswith("kslottery_fast")}
    assert named == {"kslottery_fast.attachment", "kslottery_fast.overlay", "kslottery_fast.rowset"}
    other = pickle.loads(data)
    assert torch.equal(logits(other, batch(other)), want)
    assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
    with pytest.raises(InputError, match="save_pretrained would write a checkpoint"):
        other.save_pretrained("never")
    assert not any(isinstance(module, overlay.RowEmbedding) for module in detach_rows(other).modules())


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3]}),
        peft.TrainableTokensConfig(token_indices=[3], target_modules=["embed_tokens"]),
    ],
    ids=["target_modules", "modules_to_save", "trainable_token_indices", "TrainableTokens"],
)
def test_an_embedding_that_peft_trains_is_refused_with_the_remedy(config):
    model = peft.get_peft_model(make("llama", tied=False), config)
    with pytest.raises(InputError, match=r"wrapped by PEFT.*target_modules, modules_to_save and trainable_token_ind"):
        attach_rows(model, TOKENS)

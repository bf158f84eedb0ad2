"""What a model with rows of both tables can do: sets, mixtures, merging, copies, compilation, quantized tables."""

from __future__ import annotations

import copy
import pickle

import accelerate
import pytest
import torch
from own_head_models import OUTPUT_TOKENS, edited, move, parameters_of, tuned_both
from tiny_models import ALL, TOKENS, Int8Embedding, batch, logits, make
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kslottery_fast import InputError, add_rows, attach_rows, get_rows, mixed_rows, remove_rows, transfer_rows, use_rows
from kslottery_fast.evaluation.logits import supervised_logits
from kslottery_fast.rows import get_output_rows
from kslottery_fast.rows.attach import detach_rows, has_rows, is_tied, merge_rows, output_role


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("name", ALL)
def test_attached_merged_reloaded_and_edited_models_agree_and_detaching_gives_the_original_back(name, tmp_path):
    base = make(name)
    model = tuned_both(copy.deepcopy(base))
    assert output_role(model) == "own"
    want = edited(base, model)
    close(logits(model, batch(model)), logits(want, batch(want)))
    assert (logits(model, batch(model)) - logits(base, batch(base))).abs().max() > 0.1
    detached = detach_rows(copy.deepcopy(model))
    assert is_tied(detached)
    assert torch.equal(logits(detached, batch(base)), logits(base, batch(base)))
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in detached.state_dict().items())
    assert all(parameter.requires_grad for parameter in detached.parameters())
    merged = merge_rows(model)
    assert not has_rows(merged)
    assert not is_tied(merged)
    assert torch.equal(logits(merged, batch(base)), logits(want, batch(base)))
    merged.save_pretrained(tmp_path)
    auto = AutoModelForSeq2SeqLM if base.config.is_encoder_decoder else AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, batch(base)), logits(want, batch(base)))


@pytest.mark.parametrize("name", ["llama", "phi", "qwen2", "gemma"])
def test_an_untied_model_gets_both_tables_written(name):
    base = make(name, tied=False)
    model = tuned_both(copy.deepcopy(base))
    want = edited(base, model)
    close(logits(model, batch(model)), logits(want, batch(want)))
    merge_rows(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, want.state_dict()[key]), key
    assert model.get_output_embeddings().weight.requires_grad


def test_sets_have_output_ids_of_their_own_and_mix_in_one_batch_forward_and_backward():
    base = make("phi", tied=False)
    model = attach_rows(copy.deepcopy(base), TOKENS, output="own", name="a")
    move(model)
    add_rows(model, "b", [5, 9, 11], output_ids=[3, 40])
    move(use_rows(model, "b"), seed=1)
    assert get_output_rows(model).token_ids.tolist() == [3, 40]
    inputs = {name: torch.cat([value, value[:1]]) for name, value in batch(model).items()}
    parts, gradients = [], []
    for index, name in enumerate(("b", None, "a")):
        use_rows(model, name)
        alone = {key: value[index : index + 1] for key, value in inputs.items()}
        found = model(**alone).logits
        parts.append(found.detach())
        if name is not None:
            close(parts[-1], logits(edited(base, model), alone))
            gradients.append(torch.autograd.grad(found.square().sum(), parameters_of(model)))
    use_rows(model, "a")
    with mixed_rows(model, ["b", None, "a"]):
        mixed = model(**inputs).logits
        close(mixed, torch.cat(parts))
        mixed.square().sum().backward()
    sets = get_rows(model).row_sets
    for name, want in zip(("b", "a"), gradients, strict=True):
        for parameter, gradient in zip(sets[name].parameters(), (want[0], want[1], want[2]), strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="merging would lose the sets 'b'"):
        merge_rows(model)
    want = logits(model, batch(model))
    close(logits(merge_rows(remove_rows(model, "b")), batch(model)), want)


def test_the_base_rows_are_those_of_both_tables():
    base = make("phi")
    model = tuned_both(copy.deepcopy(base))
    use_rows(model, None)
    assert torch.equal(logits(model, batch(model)), logits(base, batch(base)))
    with pytest.raises(InputError, match="no rows are in use"):
        _ = get_output_rows(model).rows


def test_generation_supervised_logits_and_compilation_see_the_rows_of_the_head():
    base = make("phi", tied=False)
    model = tuned_both(copy.deepcopy(base))
    want = edited(base, model)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    prompt = {name: batch(model)[name] for name in ("input_ids", "attention_mask")}
    said = model.generate(**prompt, **options)
    assert torch.equal(said, want.generate(**prompt, **options))
    assert not torch.equal(said, base.generate(**prompt, **options))
    inputs = batch(model)
    inputs["labels"] = inputs["input_ids"].where(torch.rand(inputs["input_ids"].shape) < 0.5, -100)
    for ours, theirs in zip(supervised_logits(model, inputs), supervised_logits(want, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    eager = model(**batch(model)).logits
    gradients = torch.autograd.grad(eager.square().mean(), parameters_of(model))
    compiled = torch.compile(model, backend="aot_eager")(**batch(model)).logits
    torch.testing.assert_close(compiled, eager)
    got = torch.autograd.grad(compiled.square().mean(), parameters_of(model))
    for ours, theirs in zip(got, gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_copies_pickles_and_state_dicts_are_complete_and_independent():
    model = tuned_both(make("phi"))
    want, state = logits(model, batch(model)), model.state_dict()
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    fresh = attach_rows(make("phi"), TOKENS, output="own", output_ids=[1, 2, 3, 4])
    fresh.load_state_dict(state)
    assert get_output_rows(fresh).token_ids.tolist() == OUTPUT_TOKENS
    half = attach_rows(make("phi"), TOKENS, output="own", output_ids=OUTPUT_TOKENS)
    half.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    with torch.no_grad():
        for parameter in parameters_of(model):
            parameter.zero_()
    for other in (*others, fresh):
        assert torch.equal(logits(other, batch(other)), want)
    assert {key.partition("row_sets.")[2] for key in state if "row_sets" in key} == {
        f"default.{key}" for key in ("rows", "_extra_state", "output.rows", "output.bias", "output._extra_state")
    }
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({key: value for key, value in state.items() if "output.rows" not in key})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_and_bias_of_the_head_stay_float32_when_the_model_is_cast(dtype):
    model = tuned_both(make("phi"))
    values = [parameter.detach().clone() for parameter in parameters_of(model)]
    model.to(dtype)
    for parameter, value in zip(parameters_of(model), values, strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, value)
    found = model(**batch(model)).logits
    assert found.dtype == dtype
    found.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in parameters_of(model))
    attached = logits(model, batch(model))
    torch.testing.assert_close(logits(merge_rows(model), batch(model)), attached, rtol=2e-2, atol=2e-2)


def test_backward_gives_the_same_bits_each_time_and_makes_no_gradient_of_the_tables_size():
    model = tuned_both(make("phi", tied=False)).train()
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight, model.lm_head.bias]
    first, second = (
        torch.autograd.grad(model(**batch(model)).logits.square().sum(), parameters_of(model)) for _ in range(2)
    )
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert not any(table.requires_grad for table in tables)
    sizes = {tuple(parameter.shape) for parameter in parameters_of(model)}
    assert sizes == {(3, 16), (4, 16), (4,)}


def test_without_freeze_other_parameters_train_and_the_head_does_not():
    model = make("phi", tied=False)
    model.model.layers[0].requires_grad_(True)
    attach_rows(model, TOKENS, output="own", freeze=False)
    assert model.model.layers[0].self_attn.q_proj.weight.requires_grad
    assert not model.lm_head.weight.requires_grad
    assert not model.lm_head.bias.requires_grad
    detach_rows(model)
    assert model.lm_head.bias.requires_grad


class Int8Linear(nn.Linear):
    """A head of int8 with one scale a row, as bitsandbytes and torchao keep it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.register_buffer("scale", linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().char(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight * self.scale, self.bias)


def quantized_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model with a head of int8, and one with the same numbers in float32."""
    plain = copy.deepcopy(model)
    head = Int8Linear(model.get_output_embeddings())
    with torch.no_grad():
        plain.get_output_embeddings().weight.copy_(head.weight * head.scale)
    model.set_output_embeddings(head)
    return model, plain


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_rows_of_a_quantized_head_are_those_over_its_numbers_and_the_gradient_goes_through_it(name):
    model, plain = quantized_head(make(name, tied=False))
    before = logits(model, batch(model))
    results = []
    for each in (model, plain):
        attach_rows(each, TOKENS, output="own", output_ids=OUTPUT_TOKENS)
        close(logits(each, batch(each)), before)
        move(each)
        found = each(**batch(each)).logits
        results.append((found.detach(), *torch.autograd.grad(found.square().mean(), parameters_of(each))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    add_rows(model, "fr", [9], output_ids=[9, 12])
    with mixed_rows(model, ["fr", "default"]):
        model(**batch(model)).logits.square().mean().backward()
    assert get_rows(model).row_sets["fr"].output.rows.grad.abs().sum() > 0
    use_rows(model, "default")
    with pytest.raises(InputError, match="cannot merge into a table that is quantized"):
        merge_rows(remove_rows(model, "fr"))
    detach_rows(model)
    assert type(model.get_output_embeddings()) is Int8Linear
    assert torch.equal(logits(model, batch(model)), before)


def test_both_tables_may_be_quantized():
    model, plain = quantized_head(make("llama", tied=False))
    table = Int8Embedding(model.get_input_embeddings())
    with torch.no_grad():
        plain.get_input_embeddings().weight.copy_(table.weight * table.scale)
    model.set_input_embeddings(table)
    outputs = [logits(tuned_both(each), batch(each)) for each in (model, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("phi", True)])
def test_rows_of_an_offloaded_head_are_those_over_a_head_in_memory(name, tied, place, tmp_path):
    model, plain = make(name, tied=tied), make(name, tied=tied)
    if place == "memory":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path / "weights"), execution_device="cpu")
    assert model.get_output_embeddings().weight.is_meta
    results = []
    for each in (model, plain):
        tuned_both(each)
        found = each(**batch(each)).logits
        results.append((found.detach(), *torch.autograd.grad(found.square().mean(), parameters_of(each))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(InputError, match="cannot merge into a table that is offloaded"):
        merge_rows(model)


def test_rows_that_are_offloaded_with_the_model_are_loaded_for_each_forward():
    model = tuned_both(make("phi", tied=False))
    want = logits(model, batch(model))
    accelerate.cpu_offload(model, execution_device="cpu")
    assert get_output_rows(model).rows.is_meta
    assert get_output_rows(model).row_bias.is_meta
    torch.testing.assert_close(logits(model, batch(model)), want)


@pytest.mark.parametrize("tied", [True, False])
def test_transfer_copies_the_rows_of_both_tables_and_nothing_else(tied):
    source, target = tuned_both(make("phi")), make("phi", tied=tied)
    want = {key: value.clone() for key, value in target.state_dict().items()}
    own = get_output_rows(source)
    want["model.embed_tokens.weight"][[7, 9]] = torch.stack([get_rows(source).rows[0], source.lm_head.weight[9]])
    want["lm_head.weight"][[11, 8]] = torch.stack([own.rows[1], source.lm_head.weight[8]])
    want["lm_head.bias"][[11, 8]] = torch.stack([own.row_bias[1], source.lm_head.bias[8]])
    transfer_rows(source, target, [7, 9], output="own", output_ids=[11, 8])
    assert not is_tied(target)
    assert all(torch.equal(value, want[key]) for key, value in target.state_dict().items())
    transfer_rows(use_rows(source, None), target, [7], output="own")
    assert torch.equal(target.lm_head.bias[7], source.lm_head.bias[7])
    assert torch.equal(target.lm_head.weight[7], source.lm_head.weight[7])

"""Training rows in the lab: its batches, the model afterwards, and the error if it diverges."""

import random
from dataclasses import fields, replace

import pytest
import torch
from transformers import TrainingArguments

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import Example, encode
from kslottery_fast.integrations.peft_adapters import LORA, PREFIX
from kslottery_fast.lab.experiment.trained import TrainedRows
from kslottery_fast.lab.experiment.training import GroupedBatches, Recipe, train_parameters, train_rows
from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.attach import has_rows

RECIPE = Recipe(pad_token_id=2, steps=3, batch_size=4, micro_batch_size=2, learning_rate=1e-2, seed=0)


@pytest.fixture
def features(tiny_tokenizer):
    texts = ["Save", "Save the file", "Delete all", "The house is big", "big", "file"]
    return [encode(tiny_tokenizer, Example(f"English: {text}\nSpanish:", f" {text[::-1]}")) for text in texts]


def test_grouped_batches_show_every_example_once_an_epoch_and_save_padding():
    numbers = random.Random(0)
    lengths = [numbers.randint(5, 100) for _ in range(203)]
    sampler = GroupedBatches(lengths, batch_size=8, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(203))
    assert first != second

    def padded(order):
        return sum(8 * max(lengths[i] for i in order[b : b + 8]) for b in range(0, 200, 8))

    assert padded(first) < 0.75 * padded(range(203))


def test_grouped_batches_repeat_with_their_seed_and_epoch_and_differ_without():
    lengths = list(range(50))
    ahead, on_the_way = (GroupedBatches(lengths, 4, seed=1) for _ in range(2))
    list(on_the_way)
    for sampler in (ahead, on_the_way):
        sampler.set_epoch(2)  # as where a checkpoint of the third epoch is taken up, and where it is reached
    assert list(ahead) == list(on_the_way)
    assert list(GroupedBatches(lengths, 4, seed=1)) == list(GroupedBatches(lengths, 4, seed=1))
    assert list(GroupedBatches(lengths, 4, seed=1)) != list(GroupedBatches(lengths, 4, seed=2))


def test_training_moves_only_the_given_rows_and_gives_the_model_back_bit_for_bit(tiny_llama, features):
    model = tiny_llama(tied=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    ids = torch.tensor(sorted({i for feature in features for i in feature["input_ids"]} - {2}))
    steps = []
    trained = train_rows(model, ids, features, RECIPE, progress=lambda *step: steps.append(step))
    assert not has_rows(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(trained.token_ids, ids)
    table = before["model.embed_tokens.weight"]
    assert (trained.rows != table[ids]).any(dim=1).all()
    assert steps == [(step, 3, f"loss {loss:.3f}") for step, loss in enumerate(trained.losses, 1)]


def test_the_same_seed_trains_the_same_bits(tiny_llama, features):
    ids = torch.tensor(sorted({i for feature in features for i in feature["input_ids"]} - {2}))
    first, second = (train_rows(tiny_llama(), ids, features, RECIPE) for _ in range(2))
    assert torch.equal(first.rows, second.rows)
    assert first.losses == second.losses


def test_beta2_and_eps_reach_the_optimizer_and_are_by_default_those_of_the_trainer(tiny_llama, features, monkeypatch):
    seen = []

    class Recording(RowAdamW):
        def __init__(self, *arguments, **options):
            seen.append((options["betas"], options["eps"]))
            super().__init__(*arguments, **options)

    monkeypatch.setattr("kslottery_fast.integrations.trainer.RowAdamW", Recording)
    ids = torch.tensor([features[0]["input_ids"][0]])
    for recipe in (RECIPE, replace(RECIPE, beta2=0.95, eps=1e-3)):
        train_rows(tiny_llama(), ids, features, recipe)
    defaults = {field.name: field.default for field in fields(TrainingArguments)}
    usual = (defaults["adam_beta1"], defaults["adam_beta2"]), defaults["adam_epsilon"]
    assert seen == [usual, ((0.9, 0.95), 1e-3)]


def test_a_loss_that_is_no_number_stops_training_by_name_and_takes_the_rows_off(tiny_llama, features):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    ids = torch.tensor([features[0]["input_ids"][0]])
    with pytest.raises(InputError, match=r"diverged.*learning rate"):
        train_rows(model, ids, features, RECIPE)
    assert not has_rows(model)


def test_only_picks_rows_in_the_order_asked_for():
    trained = TrainedRows(torch.tensor([3, 5, 9]), torch.tensor([[3.0], [5.0], [9.0]]), [1.0])
    picked = trained.only(torch.tensor([9, 3]))
    assert picked.rows.tolist() == [[9.0], [3.0]]
    assert picked.token_ids.tolist() == [9, 3]


@pytest.mark.parametrize(("dtype", "during"), [(torch.bfloat16, "eager"), (torch.float32, "sdpa")])
def test_a_bfloat16_model_on_the_cpu_trains_with_plain_attention_and_gets_its_own_back(
    tiny_llama, features, dtype, during
):
    model, seen = tiny_llama().to(dtype), set()
    assert model.config._attn_implementation == "sdpa"
    train_rows(
        model, torch.tensor([5]), features, RECIPE, progress=lambda *_: seen.add(model.config._attn_implementation)
    )
    assert seen == {during}
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", [LORA, PREFIX])
def test_a_bfloat16_model_inside_an_adapter_trains_with_plain_attention_too(tiny_llama, features, kind):
    model, seen = tiny_llama().to(torch.bfloat16), set()
    with kind.attached(model, 512, features[0]["input_ids"]) as (adapter, _):
        before = [parameter.detach().clone() for parameter in adapter.parameters() if parameter.requires_grad]
        losses = train_parameters(
            adapter, features, RECIPE, progress=lambda *_: seen.add(model.config._attn_implementation)
        )
        trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
        assert {parameter.dtype for parameter in trained} == {torch.float32}
        assert any(not torch.equal(now, then) for now, then in zip(trained, before, strict=True))
    assert len(losses) == RECIPE.steps
    assert seen == {"eager"}
    assert model.config._attn_implementation == "sdpa"

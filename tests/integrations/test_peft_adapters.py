"""LoRA and Prefix Tuning: the budget, the model left as it was, and one prefixed model in training and generation."""

import peft
import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.evaluation.generation import generate
from kslottery_fast.integrations.peft_adapters import LORA, PREFIX, PrefixedModel, keys_and_values, plan_lora

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
PROMPT = [3, 14, 15, 92, 65]


def state(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("budget", "rank", "layers"),
    [(1, 1, [3]), (100, 1, [3]), (200, 1, [2, 3]), (448, 1, [0, 1, 2, 3]), (1000, 2, [0, 1, 2, 3])],
)
def test_lora_comes_as_near_to_the_budget_as_rank_and_layers_allow(tiny_llama, budget, rank, layers):
    """Rank 1 costs 32 + 32 on q and 32 + 16 on v: 112 a layer, 448 in all."""
    plan = plan_lora(tiny_llama(num_hidden_layers=4), budget)
    assert (plan["rank"], plan["layers"]) == (rank, layers)


def test_lora_needs_an_architecture_that_peft_knows(tiny_llama):
    model = tiny_llama()
    model.config.model_type = "unheard-of"
    with pytest.raises(InputError, match="no default LoRA modules for model type 'unheard-of'"):
        plan_lora(model, 100)


@pytest.mark.parametrize("kind", [LORA, PREFIX])
def test_an_adapter_trains_alone_is_saved_and_comes_off_without_a_trace(tiny_llama, tmp_path, kind):
    model = tiny_llama(tied=True)
    before, plain = state(model), model(IDS).logits.detach()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    torch.manual_seed(0)
    with kind.attached(model, 512, PROMPT) as (adapter, _):
        trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.1)
        wanted = adapter(input_ids=IDS).logits.detach()
        kind.save(adapter, tmp_path / "adapter")
    assert sum(parameter.numel() for parameter in trained) < 600
    assert not torch.allclose(wanted, plain)
    with kind.loaded(model, tmp_path / "adapter") as adapter:
        assert torch.allclose(adapter(input_ids=IDS).logits, wanted, atol=1e-6)
    assert torch.equal(model(IDS).logits, plain)
    assert state(model).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


@pytest.mark.parametrize("wrong", [None, "a", 3.5, ["a"], []])
def test_wrong_arguments_of_adapters_are_refused_by_name_and_the_model_stays_as_it_was(tiny_llama, tmp_path, wrong):
    model = tiny_llama()
    before = state(model)
    calls = [
        ("model", lambda: plan_lora(wrong, 100)),
        ("budget", lambda: plan_lora(model, wrong)),
        ("model", lambda: keys_and_values(wrong, PROMPT)),
        ("token_ids", lambda: keys_and_values(model, wrong)),
    ]
    for kind in (LORA, PREFIX):
        calls += [
            ("model", lambda kind=kind: kind.attached(wrong, 100, PROMPT).__enter__()),
            ("budget", lambda kind=kind: kind.attached(model, wrong, PROMPT).__enter__()),
            ("adapter", lambda kind=kind: kind.save(wrong, tmp_path)),
        ]
        if not isinstance(wrong, str):
            calls.append(("folder", lambda kind=kind: kind.loaded(model, wrong).__enter__()))
    calls.append(("prompt", lambda: PREFIX.attached(model, 100, wrong).__enter__()))
    for name, call in calls:
        with pytest.raises((InputError, TypeError), match=rf"^{name} is "):
            call()
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def start(model, prompt: list[int], tokens: int) -> torch.Tensor:
    """Keys and values that a new prefix begins with; one token has 2 x 2 layers x 2 heads of 8 = 64 of them."""
    with PREFIX.attached(model, 64 * tokens, prompt) as (prefixed, plan):
        assert plan["virtual_tokens"] == tokens
        return prefixed.adapter.prompt_encoder["default"].embedding.weight.detach().clone().view(tokens, 4, 2, 8)


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_a_prefix_starts_as_the_prompt_would_be_read_cut_or_repeated(tiny_llama, monkeypatch, tokens):
    monkeypatch.setattr(PREFIX, "noise", 0.0)
    model = tiny_llama()
    front = torch.tensor([(PROMPT + PROMPT)[:tokens]])
    wanted = model(torch.cat([front.expand(2, -1), IDS], dim=1)).logits[:, tokens:]
    with PREFIX.attached(model, 64 * tokens, PROMPT) as (prefixed, _):
        assert torch.allclose(prefixed(input_ids=IDS).logits, wanted, atol=1e-4)


def test_training_seeds_start_near_the_prompt_and_from_different_places(tiny_llama):
    model, exact = tiny_llama(), keys_and_values(tiny_llama(), PROMPT[:3])
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(start(model, PROMPT, 3))
    assert torch.equal(starts[0], starts[1])
    assert not torch.allclose(starts[0], starts[2], atol=1e-3)
    size = float(exact.square().mean().sqrt())
    for found in starts:
        assert float((found - exact).square().mean().sqrt()) == pytest.approx(0.1 * size, rel=0.15)


def test_before_training_a_prefixed_model_predicts_about_as_the_untuned_one_and_not_as_pefts_draw_does(tiny_llama):
    """The model knows four phrases by heart, in any order; the prefix begins as one of them."""
    generator = torch.Generator().manual_seed(0)
    phrases = torch.randint(3, 13, (4, 6), generator=generator)

    def texts(count: int, length: int) -> torch.Tensor:
        return phrases[torch.randint(4, (count, length), generator=generator)].flatten(1)

    model = tiny_llama(initializer_range=0.1).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 100)
    for _ in range(100):
        ids = texts(16, 4)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    held_out = texts(32, 3)

    def loss(model) -> float:
        logits = model(input_ids=held_out).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), held_out[:, 1:].flatten()).detach())

    untuned = loss(model)
    assert untuned < 0.4  # nats; which phrase comes next is a guess
    torch.manual_seed(0)
    with PREFIX.attached(model, 64 * 6, phrases[0].tolist()) as (prefixed, _):
        assert loss(prefixed) == pytest.approx(untuned, abs=0.05)
        torch.nn.init.normal_(prefixed.adapter.prompt_encoder["default"].embedding.weight)
        assert loss(prefixed) > untuned + 0.2


def test_a_model_without_keys_and_values_of_every_token_is_refused(tiny_llama):
    model = tiny_llama()
    model.forward = lambda *_, **__: type("Output", (), {"past_key_values": None})
    with pytest.raises(InputError, match="does not keep keys and values of 5 tokens alike in all layers"):
        keys_and_values(model, PROMPT)


@pytest.fixture
def prefixed(tiny_llama):
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return PrefixedModel(peft.get_peft_model(tiny_llama(), config)).eval()


def test_a_prefixed_model_is_that_of_peft(prefixed):
    ours = prefixed(input_ids=IDS).logits
    theirs = prefixed.adapter(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(ours, prefixed.get_base_model()(IDS).logits, atol=1e-2)


def test_generation_with_padding_and_cache_is_the_argmax_of_whole_forwards(prefixed, tiny_tokenizer):
    prompts = ["The house", "Delete all the files and save"]
    texts = [output.text for output in generate(prefixed, tiny_tokenizer, prompts, max_new_tokens=5)]
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tiny_tokenizer(prompt)["input_ids"]
        length = len(ids)
        for _ in range(5):
            ids.append(int(prefixed(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
        assert tiny_tokenizer.decode(ids[length:], skip_special_tokens=True) == text


def test_padding_on_the_right_does_not_change_a_sentence(prefixed, tiny_tokenizer):
    features = [encode(tiny_tokenizer, Example("a", " b")), encode(tiny_tokenizer, Example("The house", " La casa"))]
    batch, alone = collate(features, 2), collate(features[:1], 2)
    length = alone["input_ids"].shape[1]
    together = prefixed(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, :length]
    assert torch.allclose(together, prefixed(input_ids=alone["input_ids"]).logits[0], atol=1e-4)

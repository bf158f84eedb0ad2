"""Batched, cached, shrinking greedy generation gives what one argmax after another gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.generation import (
    CACHE_NAMES,
    GeneratedText,
    cache_keyword,
    cache_of,
    device_of,
    end_ids,
    generate,
    inference,
    length_batches,
)

PROMPTS = [
    "English: The house",
    "a",
    "Spanish: La casa es grande\nEnglish:",
    "all",
    "Save the file\n",
    "x y z",
    "Translate",
]


def naive(model, tokenizer, prompt, max_new_tokens, ends=(2,)):
    """One sequence, no padding, no cache: the definition."""
    ids, new = tokenizer(prompt)["input_ids"], []
    with torch.no_grad():
        while len(new) < max_new_tokens and not (new and new[-1] in ends):
            new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    ended = new[-1] in ends
    return GeneratedText(tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True), ended, len(new))


def random_model(name, tiny_llama):
    torch.manual_seed(0)
    if name.startswith("llama"):
        return tiny_llama(name == "llama tied")
    if name == "gpt2":  # learned absolute positions: left padding must not shift them
        config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.5)
        return GPT2LMHeadModel(config).eval()
    if name == "bloom":  # positions from the mask alone
        return BloomForCausalLM(
            BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.5)
        ).eval()
    config = Gemma2Config(  # a sliding window shorter than the texts
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.5,
        sliding_window=8,
        max_position_embeddings=128,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2", "bloom", "gemma"])
def test_generation_equals_one_argmax_after_another(name, tiny_llama, tiny_tokenizer):
    model = random_model(name, tiny_llama)
    model.generation_config.eos_token_id = 2
    wanted = [naive(model, tiny_tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len({result.text for result in wanted}) > 3  # the models do not all say the same
    for batch_size in (1, 3, 32):
        assert generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size) == wanted


class Called(torch.nn.Module):
    """A model of whatever release of transformers, under one name for the cache of keys and values."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.config, self.generation_config = model, model.config, model.generation_config
        self.seen = []
        if name == "cache":
            self.forward = lambda input_ids, attention_mask, cache=None, **others: self.run(
                "cache", cache, input_ids=input_ids, attention_mask=attention_mask, **others
            )
        else:
            self.forward = lambda input_ids, attention_mask, past_key_values=None, **others: self.run(
                "past_key_values", past_key_values, input_ids=input_ids, attention_mask=attention_mask, **others
            )

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def run(self, name, cache, **others):
        self.seen.append(cache is not None)
        output = self.model(**others, **{cache_keyword(self.model): cache})
        return SimpleNamespace(logits=output.logits, **{name: cache_of(output)})


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_the_cache_is_passed_on_under_the_name_that_the_model_has_for_it(name, tiny_llama, tiny_tokenizer):
    model = tiny_llama()
    model.generation_config.eos_token_id = 2
    renamed = Called(model, name)
    assert cache_keyword(renamed) == name
    wanted = [naive(model, tiny_tokenizer, prompt, 6) for prompt in PROMPTS]
    assert generate(renamed, tiny_tokenizer, PROMPTS, max_new_tokens=6, batch_size=32) == wanted
    assert renamed.seen == [False] + [True] * 5


def test_rows_that_end_early_change_nothing_for_the_others(tiny_llama, tiny_tokenizer):
    """Many end tokens: rows end at different steps, leave the batch, and the rest goes on as if alone."""
    model = tiny_llama()
    ends = set(range(0, 320, 12)) | {2}
    model.generation_config.eos_token_id = sorted(ends)
    wanted = [naive(model, tiny_tokenizer, prompt, 30, ends) for prompt in PROMPTS * 2]
    assert len({result.tokens for result in wanted}) > 3
    assert generate(model, tiny_tokenizer, PROMPTS * 2, max_new_tokens=30, batch_size=14) == wanted


def chain(tokenizer, *texts, end):
    """Script that follows the tokens of the texts in turn; ``end`` says where the last one leads."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    flat = [i for row in ids for i in row]
    assert len(set(flat)) == len(flat), "a token cannot have two successors"
    return dict(zip(flat, [*flat[1:], end], strict=True))


@pytest.fixture
def scripted(scripted_llama, tiny_tokenizer):
    """After "x": " um,dos", the end. After "y": "q" for ever. After "z": the end at once."""
    (q,), (y,), (z,) = (tiny_tokenizer(letter)["input_ids"] for letter in "qyz")
    script = chain(tiny_tokenizer, "x", " um,dos", end=2) | {y: q, q: q, z: 2}
    return scripted_llama(script)


def test_ended_means_that_the_end_token_was_generated(scripted, tiny_tokenizer):
    length = len(tiny_tokenizer(" um,dos")["input_ids"])
    assert tiny_tokenizer.pad_token_id == tiny_tokenizer.eos_token_id
    assert generate(scripted, tiny_tokenizer, ["x", "y", "z"], max_new_tokens=9) == [
        GeneratedText(" um,dos", True, length + 1),
        GeneratedText("q" * 9, False, 9),
        GeneratedText("", True, 1),
    ]


def test_the_last_token_allowed_may_be_the_end(scripted, tiny_tokenizer):
    length = len(tiny_tokenizer(" um,dos")["input_ids"])
    assert generate(scripted, tiny_tokenizer, ["x"], max_new_tokens=length + 1)[0].ended
    assert not generate(scripted, tiny_tokenizer, ["x"], max_new_tokens=length)[0].ended


def test_ended_rows_leave_the_batch(scripted, tiny_tokenizer):
    rows = []
    handle = scripted.register_forward_pre_hook(
        lambda _model, _args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    generate(scripted, tiny_tokenizer, ["z"] * 7 + ["y"], max_new_tokens=10, batch_size=8)
    handle.remove()
    assert rows == [8] + [1] * 9


def test_generation_stops_when_all_rows_have_ended(scripted, tiny_tokenizer):
    calls = []
    handle = scripted.register_forward_pre_hook(lambda *_: calls.append(1))
    generate(scripted, tiny_tokenizer, ["z"] * 4, max_new_tokens=100, batch_size=4)
    handle.remove()
    assert len(calls) == 1


def test_sampling_settings_and_penalties_of_the_model_are_ignored(tiny_llama, tiny_tokenizer):
    model = tiny_llama()
    plain = generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8)
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty, settings.num_beams = (
        True,
        5.0,
        9.0,
        3,
    )
    assert generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8) == plain


def test_the_order_of_the_prompts_is_kept_and_does_not_matter(tiny_llama, tiny_tokenizer):
    model = tiny_llama()
    forward = generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8, batch_size=2)
    assert generate(model, tiny_tokenizer, PROMPTS[::-1], max_new_tokens=8, batch_size=2) == forward[::-1]


def test_a_bfloat16_model_generates_the_same_text_twice(tiny_llama, tiny_tokenizer):
    model = tiny_llama().bfloat16()
    first = generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8, batch_size=3)
    assert generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=8, batch_size=3) == first


def test_modes_and_padding_side_are_left_as_they_were(tiny_llama, tiny_tokenizer):
    model = tiny_llama().train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    tiny_tokenizer.padding_side = "right"
    generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=2)
    assert [module.training for module in model.modules()] == modes
    assert tiny_tokenizer.padding_side == "right"
    assert torch.is_grad_enabled()


def test_modes_are_restored_after_an_error(tiny_llama):
    model = tiny_llama().train()

    def fail():
        with inference(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_no_copy_of_the_output_head_is_made(tiny_llama, tiny_tokenizer):
    """A strided last position makes torch multiply with B copies of a frozen [V, d] head."""
    model = tiny_llama().requires_grad_(False)
    head = model.get_output_embeddings().weight
    copies = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            result = op(*args, **(kwargs or {}))
            if op is torch.ops.aten.bmm.default and max(a.numel() for a in args) >= head.numel():
                copies.append([tuple(a.shape) for a in args])
            return result

    with Watch():
        generate(model, tiny_tokenizer, PROMPTS, max_new_tokens=2)
    assert not copies


def test_progress_counts_prompts(tiny_llama, tiny_tokenizer):
    seen = []
    generate(
        tiny_llama(),
        tiny_tokenizer,
        PROMPTS,
        max_new_tokens=1,
        batch_size=3,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_batches_hold_similar_lengths_the_longest_first():
    assert list(length_batches([3, 9, 1, 9, 5], 2)) == [[1, 3], [4, 0], [2]]


def test_end_tokens_are_those_of_tokenizer_and_generation_config(tiny_llama, tiny_tokenizer):
    model = tiny_llama()
    model.generation_config.eos_token_id = 7
    assert end_ids(model, tiny_tokenizer) == {2, 7}
    model.generation_config.eos_token_id = [7, 8]
    assert end_ids(model, tiny_tokenizer) == {2, 7, 8}
    model.generation_config.eos_token_id = None
    assert end_ids(model, tiny_tokenizer) == {2}


def test_no_prompts_are_refused(tiny_llama, tiny_tokenizer):
    with pytest.raises(InputError, match="prompts is empty: give at least one str"):
        generate(tiny_llama(), tiny_tokenizer, [])


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
def test_sizes_are_checked_by_name(name, tiny_llama, tiny_tokenizer):
    with pytest.raises(InputError, match=f"{name} is 0: expected at least 1"):
        generate(tiny_llama(), tiny_tokenizer, ["a"], **{name: 0})
    with pytest.raises(TypeError, match=f"{name} is 1.0: expected an integer"):
        generate(tiny_llama(), tiny_tokenizer, ["a"], **{name: 1.0})


def test_a_model_without_a_cache_is_refused(tiny_tokenizer):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, attention_mask): ...

    with pytest.raises(InputError, match="Plain takes no key/value cache: generation needs one"):
        generate(Plain(), tiny_tokenizer, ["a"])


def test_a_meta_model_and_one_without_parameters_are_refused(tiny_tokenizer):
    with pytest.raises(InputError, match="the parameter weight of the model has no values"):
        device_of(torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(InputError, match="the model, Identity, has no parameters"):
        device_of(torch.nn.Identity())

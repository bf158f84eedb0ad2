"""supervised_logits gives the rows of the full logits at the supervised positions, on five architectures."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.logits import supervised_logits


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=60,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=32,
            initializer_range=0.5,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def gemma(softcap=5.0):
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            initializer_range=0.5,
            final_logit_softcapping=softcap,
        )
    )


def t5():
    config = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def batch(seed=0):
    """Three right-padded sequences; the third supervises nothing."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 60, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    labels[0, 5] = -100  # a gap inside the target
    labels[2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("make", ["llama", "llama tied", "gpt2", "gemma"])
def test_decoder_only_logits_equal_the_full_logits_of_the_preceding_positions(make, tiny_llama):
    torch.manual_seed(0)
    model = {
        "llama": lambda: tiny_llama(False, vocab_size=60),
        "llama tied": lambda: tiny_llama(True, vocab_size=60),
        "gpt2": gpt2,
        "gemma": gemma,
    }[make]().eval()
    inputs = batch()
    with torch.no_grad():
        logits, targets = supervised_logits(model, inputs)
        full = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    labels = inputs["labels"]
    wanted = [(b, t) for b in range(3) for t in range(9) if labels[b, t] != -100]
    assert len(wanted) == 5 + 3
    assert targets.tolist() == [int(labels[b, t]) for b, t in wanted]
    torch.testing.assert_close(logits, torch.stack([full[b, t - 1] for b, t in wanted]), atol=1e-5, rtol=1e-5)


def test_the_softcap_after_the_head_is_applied():
    torch.manual_seed(0)
    model = gemma(softcap=0.5).eval()
    with torch.no_grad():
        logits, _ = supervised_logits(model, batch())
    assert 0.4 < logits.abs().max() <= 0.5


def test_encoder_decoder_logits_are_not_shifted():
    torch.manual_seed(0)
    model = t5().eval()
    inputs = batch()
    with torch.no_grad():
        logits, targets = supervised_logits(model, inputs)
        full = model(**inputs).logits
    keep = inputs["labels"] != -100
    assert torch.equal(targets, inputs["labels"][keep])
    torch.testing.assert_close(logits, full[keep], atol=1e-5, rtol=1e-5)


def test_loss_and_gradient_equal_those_of_the_model(tiny_llama):
    model, inputs = tiny_llama(vocab_size=60), batch()
    embedding = model.get_input_embeddings().weight
    logits, targets = supervised_logits(model, inputs)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(loss, embedding)
    reference = model(**inputs).loss
    (wanted,) = torch.autograd.grad(reference, embedding)
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)


def test_a_batch_that_supervises_nothing_gives_no_rows(tiny_llama):
    inputs = batch()
    inputs["labels"].fill_(-100)
    logits, targets = supervised_logits(tiny_llama(vocab_size=60), inputs)
    assert logits.shape == (0, 60)
    assert targets.shape == (0,)


def test_the_hook_is_removed_even_when_the_forward_fails(tiny_llama):
    model, inputs = tiny_llama(vocab_size=60), batch()
    with pytest.raises(IndexError):
        supervised_logits(model, {**inputs, "input_ids": inputs["input_ids"] + 1000})
    assert model(input_ids=inputs["input_ids"]).logits.shape == (3, 9, 60)


def test_a_batch_without_labels_is_refused(tiny_llama):
    with pytest.raises(InputError, match="batch has no 'labels'; give int64"):
        supervised_logits(tiny_llama(vocab_size=60), {"input_ids": torch.ones(1, 2, dtype=torch.int64)})


def test_a_model_without_an_output_head_is_refused(tiny_llama):
    headless = LlamaModel(tiny_llama(vocab_size=60).config)
    with pytest.raises(InputError, match="LlamaModel has no output head"):
        supervised_logits(headless, batch())


def test_a_wrapped_model_is_called_through_its_wrapper_and_gives_the_same_logits(tiny_llama):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **inputs):
            self.calls += 1
            return self.module(**inputs)

    model = tiny_llama()
    wrapper = Wrapper(model)
    ids = torch.arange(3, 23).reshape(2, 10)
    batch = {"input_ids": ids, "labels": ids}
    assert torch.equal(supervised_logits(wrapper, batch)[0], supervised_logits(model, batch)[0])
    assert wrapper.calls == 1


def test_an_encoder_decoder_model_that_cannot_derive_decoder_inputs_says_so_and_takes_given_ones():
    config = M2M100Config(
        vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    model = M2M100ForConditionalGeneration(config).eval()
    ids = torch.arange(4, 24).reshape(2, 10)
    labels = ids.clone()
    labels[0, :3] = -100
    with pytest.raises(InputError, match="does not derive decoder_input_ids"):
        supervised_logits(model, {"input_ids": ids, "labels": labels})
    given = {"input_ids": ids, "decoder_input_ids": ids.roll(1, 1)}
    logits, targets = supervised_logits(model, {**given, "labels": labels})
    supervised = labels != -100
    torch.testing.assert_close(logits, model(**given).logits[supervised])
    assert torch.equal(targets, labels[supervised])


def test_a_model_that_was_compiled_and_run_before_is_refused(tiny_llama):
    model, inputs = tiny_llama(vocab_size=60), batch()
    compiled = torch.compile(model, backend="eager")
    compiled(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    with pytest.raises(InputError, match=r"model was compiled and has run before.* pass the model itself, uncompiled"):
        supervised_logits(compiled, inputs)
    want, targets = supervised_logits(model, inputs)
    torch.compiler.reset()
    got, same = supervised_logits(compiled, inputs)
    torch.testing.assert_close(got, want)
    assert torch.equal(same, targets)


@pytest.mark.parametrize(("model", "name"), [("gpt2", "model"), (None, "model"), (torch.nn.Linear(2, 2), "batch")])
def test_what_is_no_model_or_batch_is_refused_by_name(model, name):
    with pytest.raises(TypeError, match=f"{name} is"):
        supervised_logits(model, [1, 2])


def test_a_masked_language_model_predicts_the_token_at_the_position_itself():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForMaskedLM(BertConfig(vocab_size=60, initializer_range=0.5, **sizes)).eval()
    ids = torch.tensor([[7, 5, 9, 40], [3, 8, 2, 11]])
    labels = ids.where(torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]]) == 1, -100)
    logits, targets = supervised_logits(model, {"input_ids": ids, "labels": labels})
    assert targets.tolist() == [5, 40, 3]
    want = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, targets), want)

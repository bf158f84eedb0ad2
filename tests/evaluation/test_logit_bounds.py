"""The bound on the logits is never violated, certifies something on tiny models, and a criterion in D is unsound."""

from __future__ import annotations

import pytest
import torch

from kslottery_fast import attach_rows, get_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.certify import certify
from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.evaluation.logit_bounds import _attention_weights, margin_bounds
from kslottery_fast.evaluation.logits import supervised_logits
from kslottery_fast.evaluation.propagation import (
    _others,
    _weight_range,
    _weight_shift,
    norm_moves,
    operator_norm,
    silu_moves,
)
from kslottery_fast.evaluation.reading import read_tokens
from kslottery_fast.evaluation.toy import alphabet_model
from kslottery_fast.evaluation.worn_rows import wearing
from kslottery_fast.tickets import ks_statistics


@pytest.fixture
def batches(tiny_tokenizer):
    pairs = [("x", " 1+2=3"), ("y", "4*5-6"), ("x", " 1+2"), ("xy", "1234"), ("y", "4*5+1+2+3")]
    features = [encode(tiny_tokenizer, Example(prompt, target)) for prompt, target in pairs]
    return [collate(features[:3], 2), collate(features[3:], 2)]


def all_logits(model, batches):
    with torch.no_grad():
        return torch.cat([supervised_logits(model, batch)[0] for batch in batches])


@pytest.mark.parametrize(("size", "tied"), [(1e-5, True), (1e-2, False), (5.0, True)])
def test_no_change_of_the_rows_moves_a_margin_by_more_than_its_bound(tiny_llama, batches, size, tied):
    model = tiny_llama(tied=tied, initializer_range=0.2).double()
    tokens = read_tokens(batches)
    ids = tokens.input_ids.unique()[1::2]
    before = model.get_input_embeddings().weight.detach()[ids].clone()
    generator = torch.Generator().manual_seed(int(size * 1e4))
    for _ in range(2):
        step = torch.randn(before.shape, dtype=torch.float64, generator=generator)
        after = before + size * before.norm(dim=1, keepdim=True) * step / step.norm(dim=1, keepdim=True)
        found, here = margin_bounds(model, batches, ids, after), all_logits(model, batches)
        with wearing(model, ids, after.float(), output="auto") as other:
            there = all_logits(other, batches)
        n = torch.arange(len(found))
        lead = [z[n, found.predicted] - z[n, found.runner_up] for z in (here, there)]
        assert torch.allclose(found.margin, lead[0], atol=1e-6)
        assert ((lead[1] - lead[0]).abs() <= found.bound + 1e-5).all()
        assert (there.argmax(-1) == found.predicted)[found.certified].all()
        unread = ~tokens.reads(ids)
        assert (found.bound[unread] < 1e-4).all()
        assert (lead[1] != lead[0])[~unread].any()


def test_small_moves_are_certified_and_large_ones_are_not(tiny_llama, batches):
    model = tiny_llama(initializer_range=0.2)
    ids = read_tokens(batches).input_ids.unique()
    rows = model.get_input_embeddings().weight.detach()[ids]
    certified = [int(margin_bounds(model, batches, ids, rows * (1 + size)).certified.sum()) for size in (1e-5, 1e-3, 1)]
    assert certified[0] > certified[1] >= certified[2] == 0


def test_a_share_of_the_way_is_a_shorter_way(tiny_llama, batches):
    model = tiny_llama(initializer_range=0.2).double()
    ids = read_tokens(batches).input_ids.unique()
    rows = model.get_input_embeddings().weight.detach()[ids]
    half = margin_bounds(model, batches, ids, rows * (1 + 2e-6), share=0.5)
    assert torch.allclose(half.bound, margin_bounds(model, batches, ids, rows * (1 + 1e-6)).bound)
    whole = margin_bounds(model, batches, ids, rows * (1 + 2e-6))
    assert (half.bound <= whole.bound).all()  # equal where it is the largest possible change
    assert (2 * half.bound <= whole.bound)[:5].all()


def test_the_model_keeps_its_attention_and_attached_rows_are_those_that_it_reads(tiny_llama, batches):
    model = tiny_llama()
    ids = read_tokens(batches).input_ids.unique()
    original, kind = model.get_input_embeddings().weight.detach()[ids].clone(), model.config._attn_implementation
    attach_rows(model, ids)
    with torch.no_grad():
        get_rows(model).rows.mul_(2)
    assert (margin_bounds(model, batches, ids, 2 * original).bound < 1e-4).all()
    assert (margin_bounds(model, batches, ids, original).bound > 1e-2).all()
    assert model.config._attn_implementation == kind


def test_rms_norm_moves_by_no_more_than_its_bound():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator).double()
    moves = torch.rand(500, generator=generator).double() * 3
    step = torch.randn(500, 6, generator=generator).double()
    y = x + step / step.norm(dim=1, keepdim=True) * moves[:, None]
    for eps in (0.0, 1e-2, 1.0):
        normed = [z / (z.square().mean(dim=1, keepdim=True) + eps).sqrt() for z in (x, y)]
        moved, bound = (normed[1] - normed[0]).norm(dim=1), norm_moves(x, moves, eps)
        assert (moved <= bound + 1e-12).all()
        assert (moved > 0.9 * bound).any()


def test_the_operator_norm_is_the_largest_singular_value():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 5), (3, 5, 8), (4, 4)):
        matrix = torch.randn(shape, generator=generator)
        wanted = torch.linalg.svdvals(matrix.double())[..., 0]
        assert torch.allclose(operator_norm(matrix), wanted, rtol=2e-9, atol=0)
        assert (operator_norm(matrix) >= wanted).all()
    assert operator_norm(torch.zeros(2, 3)) == 0


def test_silu_and_attention_weights_stay_in_their_ranges():
    generator = torch.Generator().manual_seed(0)
    x, moves = torch.randn(400, generator=generator).double() * 3, torch.rand(400, generator=generator).double() * 4
    places = x[:, None] + moves[:, None] * torch.linspace(-1, 1, 301).double()
    silu = torch.nn.functional.silu
    moved, bound = (silu(places) - silu(x)[:, None]).abs().amax(dim=1), silu_moves(x, moves)
    assert (moved <= bound + 1e-12).all()
    assert (bound - moved).max() < 1e-3
    assert (silu_moves(x, moves * 1e-30) >= (x.sigmoid() * (1 + x * (-x).sigmoid())).abs() * moves * 1e-30).all()
    scores, sizes = torch.randn(50, 7, generator=generator).double(), torch.rand(50, 7, generator=generator).double()
    weights = scores.softmax(-1)
    least, most = _weight_range(weights, sizes)
    for _ in range(40):
        sign = torch.randint(0, 2, (50, 7), generator=generator) * 2 - 1
        there = (scores + sign * sizes).softmax(-1)
        assert ((least - 1e-12 <= there) & (there <= most + 1e-12)).all()
    first = torch.tensor([[1, -1, -1, -1, -1, -1, -1]])
    assert torch.allclose((scores + first * sizes).softmax(-1)[:, 0], most[:, 0])
    assert torch.allclose((scores - first * sizes).softmax(-1)[:, 0], least[:, 0])
    assert torch.equal(_others(torch.tensor([1.0, 2.0, 4.0])), torch.tensor([6.0, 5.0, 3.0]))
    slight = sizes * 1e-30  # lost in the rounding of float64, but not in the bound
    shift = _weight_shift(weights, slight, *_weight_range(weights, slight))
    most = weights * slight * (1 - weights)  # to first order, if only its own score moves
    assert (shift >= most).all()
    assert (shift <= 2 * weights * slight.amax(dim=-1, keepdim=True) * (1 + 1e-9)).all()
    huge = _weight_range(weights, sizes * 1e5)
    assert all(one.isfinite().all() for one in huge)
    alone = torch.tensor([[1.0, 0.0]]).double()  # of a position that may attend to itself alone
    assert all(torch.equal(one, alone) for one in _weight_range(alone, torch.tensor([[1e5, 0.0]]).double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_attention_weight_that_was_rounded_to_zero_may_grow(dtype):
    scores = torch.tensor([0.0, -16.0, -20.0, -80.0, -200.0])
    exact, rounded = scores.double().softmax(-1), scores.softmax(-1).to(dtype)
    assert rounded[-1] == 0
    seen = _attention_weights((rounded, rounded))
    lost = rounded == 0
    assert (seen[lost] >= exact[lost]).all()
    assert torch.equal(seen[0], rounded[0].double())


def test_a_criterion_in_d_alone_is_unsound():
    """The rows of "a" and "m" have the same numbers in another order: D = 0, and certified predictions are wrong."""
    model, tokenizer = alphabet_model()
    other, _ = alphabet_model()
    table = other.get_input_embeddings().weight
    before = table.detach().clone()
    with torch.no_grad():
        table[[1, 13]] = table[[13, 1]]
    assert (ks_statistics(before, table.detach()) == 0).all()
    assert not torch.equal(before, table)
    batch = collate([encode(tokenizer, Example("a", "bc")), encode(tokenizer, Example("l", "mno"))], 27)
    level = certify(model, [batch], alphas=[0.05], transfer_model=other).levels[0]
    assert level.certified_positions == 7
    assert level.violations == 2
    bounds = margin_bounds(model, [batch], [1, 13], table.detach()[[1, 13]])
    agree = all_logits(model, [batch]).argmax(-1) == all_logits(other, [batch]).argmax(-1)
    assert torch.equal(bounds.certified, agree)  # this model looks at the last token alone: the bound is tight
    assert int(agree.sum()) == 5


def test_other_models_and_bad_arguments_are_refused(tiny_llama, batches):
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(InputError, match="model is 'GPT2LMHeadModel': the bound is derived for LlamaForCausalLM"):
        margin_bounds(gpt, batches, [3], torch.zeros(1, 8))
    with pytest.raises(InputError, match="model is 'LlamaForCausalLM': the bound is derived"):
        margin_bounds(tiny_llama(hidden_act="relu"), batches, [3], torch.zeros(1, 32))
    changed = tiny_llama()
    changed.model.layers[1].mlp.up_proj = torch.nn.Sequential(changed.model.layers[1].mlp.up_proj)
    with pytest.raises(InputError, match=r"has a Sequential as model.layers.1.mlp.up_proj: the bound reads"):
        margin_bounds(changed, batches, [3], torch.zeros(1, 32))
    tied = tiny_llama(tied=True)
    attach_rows(tied, [3], output="tied")
    with pytest.raises(InputError, match=r"has a RowLinear as lm_head: .* Merge adapters and attached rows"):
        margin_bounds(tied, batches, [3], torch.zeros(1, 32))
    with pytest.raises(InputError, match="share is 2: expected a number strictly between 0 and 1"):
        margin_bounds(tiny_llama(), batches, [3], torch.zeros(1, 32), share=2)

"""What each row accounts for: sums against the measured fall, and values against those computed by hand."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kslottery_fast import attach_rows, embedding_table, has_rows, row_contributions
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.evaluation.quadrature import quadrature
from kslottery_fast.evaluation.regrouping import deal, put_together, take_apart
from tests.tiny_models import make


class Squares(nn.Module):
    """The loss of a target is exactly |e(token) + e(token before)|^2, with e the embedding."""

    class Head(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            square = (hidden**2).sum(dim=-1)
            return torch.stack([-square, torch.log(-torch.expm1(-square))], dim=-1)  # log-probabilities of 0 and 1

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 2, dtype=torch.float64), self.Head()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> SimpleNamespace:
        here = self.table(input_ids)
        return SimpleNamespace(logits=self.head(here + nn.functional.pad(here, (0, 0, 1, 0))[:, :-1]))


def squares(*pairs: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    """One batch for each pair of tokens; only what follows the second one is a target."""
    return [{"input_ids": torch.tensor([[a, b, 0]]), "labels": torch.tensor([[-100, -100, 0]])} for a, b in pairs]


@pytest.fixture
def moved_squares():
    """A model, and its table with the rows 1, 2 and 4 moved."""
    torch.manual_seed(0)
    model = Squares()
    after = embedding_table(model).detach().clone()
    after[[1, 2, 4]] += torch.randn(3, 2, dtype=torch.float64)
    return model, after


@pytest.fixture
def moved(tiny_llama):
    """A tied model, batches of ten examples of different lengths, and a table in which most of their rows moved."""
    model = tiny_llama(tied=True, initializer_range=0.15)
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 9, 7, 6, 9, 5, 8, 9, 6, 7]
    ids = [torch.randint(5, 40, (1, n), generator=generator) for n in lengths]
    singles = [{"input_ids": each, "labels": torch.where(torch.arange(each.shape[1]) < 3, -100, each)} for each in ids]
    singles = [{**each, "attention_mask": torch.ones_like(each["input_ids"])} for each in singles]
    batches = [put_together(singles[start : start + 4]) for start in (0, 4, 8)]
    after = embedding_table(model).detach().clone()
    after[8:30] += 0.05 * torch.randn(22, 32, generator=generator)
    after[300] += 1.0
    return model, after, batches


def everything_of(model: nn.Module) -> tuple:
    """All that a model holds, its modes and its flags."""
    embedding = model.get_input_embeddings()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [(type(module), module.training, sorted(vars(module))) for module in model.modules()]
    return copy.deepcopy(list(model.state_dict().items())), flags, modes, embedding.padding_idx


def same(first: tuple, second: tuple) -> bool:
    states = zip(first[0], second[0], strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in states) and first[1:] == second[1:]


@pytest.mark.parametrize(
    ("rule", "points"), [("midpoint", 1), ("midpoint", 3), ("gauss", 1), ("gauss", 4), ("gauss-squared", 2)]
)
def test_a_quadratic_loss_is_shared_out_as_computed_by_hand(moved_squares, rule, points):
    model, after = moved_squares
    before = embedding_table(model).detach()
    found = row_contributions(model, model, after, squares((1, 2), (4, 3)), points=points, rule=rule, examples="all")
    # The slope of |w|^2 along a step is linear in t, so its integral is (w_before + w_after) . step.
    pair, single = (before[[1, 2]] + after[[1, 2]]).sum(dim=0), (before[[3, 4]] + after[[3, 4]]).sum(dim=0)
    steps = (after - before)[[1, 2, 4]]
    by_hand = -torch.stack([pair @ steps[0], pair @ steps[1], single @ steps[2]]) / 2
    assert found.token_ids.tolist() == [1, 2, 4]
    assert found.contribution.tolist() == pytest.approx(by_hand.tolist(), rel=1e-12)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_the_standard_error_is_that_of_a_mean_over_batches(moved_squares):
    model, after = moved_squares
    options = {"points": 1, "rule": "midpoint"}
    first, second = (row_contributions(model, model, after, squares(pair), **options) for pair in ((1, 2), (1, 3)))
    both = row_contributions(model, model, after, squares((1, 2), (1, 3)), **options)
    alone = torch.stack([first.contribution, second.contribution])
    assert torch.allclose(both.contribution, alone.mean(dim=0))
    assert torch.allclose(both.standard_error, alone.std(dim=0) / 2**0.5)
    assert first.standard_error.isnan().all()  # from one batch nobody can tell
    several = row_contributions(model, model, after, squares((1, 2), (1, 3)), points=2, examples="all")
    assert torch.allclose(several.standard_error, both.standard_error)  # seeing the same examples twice teaches nothing


@pytest.mark.parametrize("output", ["frozen", "tied"])
def test_contributions_sum_to_the_fall_of_the_loss_the_better_the_more_points(moved, output):
    model, after, batches = moved
    errors = {}
    for points, rule in ((1, "gauss"), (8, "gauss"), (8, "midpoint")):
        found = row_contributions(model, model, after, batches, points=points, rule=rule, examples="all", output=output)
        errors[points, rule] = abs(found.error / found.fall)
        assert found.total == pytest.approx(float(quadrature(points, rule)[1] @ found.slopes))
    assert errors[1, "gauss"] > 0.01
    assert errors[8, "gauss"] < 0.001
    assert errors[8, "midpoint"] < 0.01


def test_a_row_contributes_nothing_if_it_did_not_move_or_its_token_does_not_occur(moved):
    model, after, batches = moved
    found = row_contributions(model, model, after, batches, points=2, measure_fall=False)
    assert found.token_ids.tolist() == [*range(8, 30), 300]
    assert found.contribution[-1] == 0
    assert found.fall is None
    assert found.error is None
    # A tied head reads the row in every position.
    tied = row_contributions(model, model, after, batches, points=2, measure_fall=False, output="tied")
    assert tied.contribution[-1] != 0


def test_rows_of_token_ids_in_any_order_count_as_tables_in_which_only_they_moved(moved):
    model, after, batches = moved
    ids, before = torch.tensor([20, 9, 15]), embedding_table(model).detach().clone()
    only = before.clone()
    only[ids] = after[ids]
    found = row_contributions(model, model, only, batches, points=2)
    assert found.token_ids.tolist() == [9, 15, 20]
    for tables in ((model, after), (model, after[ids]), (before[ids].numpy(), after.numpy())):
        again = row_contributions(model, *tables, batches, points=2, token_ids=ids)
        assert torch.equal(again.token_ids, found.token_ids)
        assert torch.equal(again.contribution, found.contribution)
        assert again.fall == found.fall


def test_how_examples_are_grouped_changes_nothing_but_rounding_and_the_seed_decides_the_rest(moved):
    model, after, batches = moved
    singles = take_apart(batches)
    regrouped = [put_together(singles[start : start + 3]) for start in (0, 3, 6, 9)]
    unmasked = [{name: tensor for name, tensor in each.items() if name != "attention_mask"} for each in singles]
    found = row_contributions(model, model, after, batches, points=3)
    assert torch.equal(row_contributions(model, model, after, batches, points=3).contribution, found.contribution)
    for others in (regrouped, unmasked):
        again = row_contributions(model, model, after, others, points=3)
        assert torch.allclose(again.contribution, found.contribution, atol=1e-5)
        assert again.fall == pytest.approx(found.fall, abs=1e-5)
    other = row_contributions(model, model, after, batches, points=3, seed=1)
    assert not torch.allclose(other.contribution, found.contribution, atol=1e-3)
    assert other.fall == pytest.approx(found.fall, abs=1e-5)


def test_a_bfloat16_model_takes_float32_rows(moved):
    model, after, batches = moved
    found = row_contributions(model, model, after, batches, points=3, examples="all")
    half = copy.deepcopy(model).bfloat16()
    again = row_contributions(half, model, after, batches, points=3, examples="all")
    assert embedding_table(half).dtype == torch.bfloat16
    assert torch.equal(again.token_ids, found.token_ids)
    gap = (again.contribution - found.contribution).norm() / found.contribution.norm()
    assert 0 < gap < 0.05


def test_the_row_of_the_padding_token_counts_where_it_is_read(moved):
    model, _, batches = moved
    batches[0]["input_ids"][:, 1] = 2  # as a chat template puts its end-of-turn token, which also pads
    with torch.no_grad():
        embedding_table(model)[2] = embedding_table(model)[3]  # it starts as zeros, where RMSNorm has no gradient
    after = embedding_table(model).detach().clone()
    after[2] += 0.05
    assert model.get_input_embeddings().padding_idx == 2
    found = row_contributions(model, model, after, batches, points=8, examples="all")
    assert found.contribution[0] != 0
    assert found.total == pytest.approx(found.fall, rel=0.01)


def test_an_encoder_decoder_model_sums_up_too():
    model = make("t5")
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"input_ids": torch.randint(8, 60, (2, n), generator=generator), "labels": torch.full((2, 4), 9 + n)}
        for n in (5, 7)
    ]
    after = embedding_table(model).detach() + 0.1 * torch.randn(60, 16, generator=generator)
    found = row_contributions(model, model, after, batches, points=12, examples="all")
    assert found.total == pytest.approx(found.fall, rel=0.01, abs=1e-3)


def test_the_model_is_as_it_was_also_after_an_error(moved):
    model, after, batches = moved
    model.train()
    model.lm_head.weight.requires_grad_(True)
    model.model.norm.weight.requires_grad_(False)
    before, steps = everything_of(model), []
    row_contributions(model, model, after, batches, points=2, progress=lambda *step: steps.append(step))
    assert same(everything_of(model), before)
    assert steps[-1] == (30, 30)  # each of ten examples at one point, before and after

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        row_contributions(model, model, after, batches, points=2, progress=interrupt)
    assert same(everything_of(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_shared_out_is_refused_by_name(moved):
    model, after, batches = moved

    def refused(message: str, *, tables: tuple = (model, after), given: object = batches, **options: object) -> None:
        with pytest.raises((InputError, TypeError), match=message):
            row_contributions(model, *tables, given, **options)
        assert not has_rows(model)

    damaged = after.clone()
    damaged[17, 3] = float("nan")
    refused(r"after cannot be used: training diverged.* \(token ids 17\)", tables=(model, damaged))
    refused(r"before cannot be used: the checkpoint is damaged.*17", tables=(damaged, model))
    refused("before and after hold the same rows: no row moved", tables=(model, model))
    refused(r"before and after have the shape \[10, 32\]: expected \[320, 32\]", tables=(after[:10], after[10:20]))
    refused(r"expected \[320, 32\], as model, or \[2, 32\]", tables=(after[:3], after[3:6]), token_ids=[1, 2])
    refused("batches is empty", given=[])
    refused("batches is a generator", given=(batch for batch in batches))
    refused("batches hold 10 examples with target tokens and points is 11: give at least", points=11)
    unsupervised = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches]
    refused("batches hold no target token: every label is -100", given=unsupervised)
    refused(r"batches\[1\] has the keys \['input_ids', 'labels'\]: expected", given=[batches[0], squares((1, 2))[0]])
    short = {**batches[0], "labels": batches[0]["labels"][:2]}
    refused(r"batches\[0\]\['labels'\] has the shape \[2, 9\]: expected 4 examples", given=[short])
    strange = {**batches[0], "input_ids": batches[0]["input_ids"] + 300}
    refused(r"batches hold the token id 33\d, outside the model's 320 embedding rows", given=[strange], points=2)
    deep = [{**batch, "labels": batch["labels"]} for batch in batches]
    for i, batch in enumerate(deep):
        batch["bias"] = torch.zeros(len(batch["labels"]), 1, i + 1)
    refused(r"batches\[1\]\['bias'\] has the shape \[4, 1, 2\] and that of batches\[0\]", given=deep)
    refused("rule is 'simpson': expected 'gauss', 'gauss-squared' or 'midpoint'", rule="simpson")
    refused("examples is None: expected 'dealt' or 'all'", examples=None)
    with torch.inference_mode():
        refused("inference_mode", points=2)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    refused("the model gives a loss of nan at the point 0.", points=2)
    attach_rows(model, [3])
    with pytest.raises(InputError, match="model has attached rows: call detach_rows or merge_rows first"):
        row_contributions(model, model, after, batches)


def contributions(*values: float) -> RowContributions:
    some = torch.tensor(values, dtype=torch.float64)
    ids = torch.arange(1, 1 + len(some)) * 2
    return RowContributions(ids, some, some * 0, 20, "gauss", some[:1], some[:1], 5)


def test_the_fewest_rows_are_counted_from_the_largest_contribution_on():
    found = contributions(0.125, -0.25, 0.5, 0.5, 0.125)
    assert found.ranked.tolist() == [6, 8, 2, 10, 4]
    assert found.cumulative.tolist() == [0.5, 1.0, 1.125, 1.25, 1.0]
    assert [found.enough(share).tolist() for share in (0.3, 0.5, 0.95)] == [[6], [6], [6, 8]]
    assert found.share([4, 6, 19]) == 0.25
    with pytest.raises(InputError, match=r"share is 1: expected a number strictly between 0 and 1"):
        found.enough(1)
    with pytest.raises(InputError, match="token_ids has 20, outside 0"):
        found.share([20])
    worse = contributions(0.5, -1.0)
    assert "fewest" not in worse.summary()
    for ask in (worse.enough, lambda: worse.cumulative, lambda: worse.share([2])):
        with pytest.raises(InputError, match=r"the contributions sum to -0\.500 nats per token, so the loss does not"):
            ask()


def test_contributions_come_back_from_a_file_and_nothing_else_is_taken_for_them(tmp_path):
    found = replace(contributions(0.5, -0.25), loss_before=3.0)
    found.save(tmp_path / "c.safetensors")
    again = RowContributions.load(tmp_path / "c.safetensors")
    for name in ("token_ids", "contribution", "standard_error", "points", "slopes"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    for name in ("vocab_size", "rule", "examples", "loss_before", "loss_after"):
        assert getattr(again, name) == getattr(found, name)
    save_file({"token_ids": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other.safetensors holds no contributions: expected a file that"):
        RowContributions.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("points", [1, 2, 5])
@pytest.mark.parametrize("rule", ["gauss", "gauss-squared", "midpoint"])
def test_quadrature_is_exact_for_the_polynomials_of_its_rule(rule, points):
    at, weights = quadrature(points, rule)
    for degree in range({"gauss": 2 * points, "gauss-squared": points, "midpoint": 2}[rule]):
        assert float((weights * at**degree).sum()) == pytest.approx(1 / (degree + 1), rel=1e-12)
    assert (weights > 0).all()
    assert ((at > 0) & (at < 1)).all()


def test_examples_are_dealt_out_once_and_evenly_by_length():
    lengths = [3] * 8 + [9] * 8 + [5] * 3
    hands = deal(lengths, 4, seed=0)
    assert sorted(itertools.chain(*hands)) == list(range(19))
    assert {len(hand) for hand in hands} == {4, 5}
    assert all(sum(lengths[i] == length for i in hand) == 2 for hand in hands for length in (3, 9))
    assert deal(lengths, 4, seed=1) != hands


def test_padding_on_the_left_stays_and_an_unused_key_without_columns_too():
    ids = torch.tensor([[0, 5, 6, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids, "weight": torch.ones(1)}
    batch["labels"] = torch.tensor([[-100, -100, 6, -100]])
    (example,) = take_apart([batch])
    assert example["input_ids"].tolist() == [[0, 5, 6]]
    joined = put_together([example, {**example, **{n: example[n][:, :2] for n in ("input_ids", "attention_mask")}}])
    assert joined["input_ids"].tolist() == [[0, 5, 6], [0, 5, 0]]
    assert joined["weight"].tolist() == [1, 1]

"""Several ticket sets on one model give, switched or mixed in a batch, what each gives alone."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import TOKENS, V, batch, logits, make
from torch import nn

from kslottery_fast import add_rows, ks_select_rows, mixed_rows, remove_rows, row_sets, use_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.logits import supervised_logits
from kslottery_fast.optim.row_adamw import RowAdamW
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows, merge_rows

SETS = {"default": TOKENS, "fr": [5, 9], "de": [7, 8, 9, 40]}
NAMES = ["fr", None, "default", "de", "fr"]
ARCHITECTURES = ["llama", "gemma", "gpt2", "opt", "t5", "m2m100"]


def several(model: nn.Module, **options: str) -> nn.Module:
    """All sets attached, their rows moved far, each its own way."""
    attach_rows(model, TOKENS, **options)
    for name in ("fr", "de"):
        add_rows(model, name, SETS[name])
    with torch.no_grad():
        for row_set in get_rows(model).row_sets.values():
            row_set.rows.add_(torch.randn_like(row_set.rows))
    return model


def wide_batch(model: nn.Module) -> dict[str, torch.Tensor]:
    """One example for each of NAMES; tokens 5 and 7 occur in all, so that every set but the base makes a difference."""
    parts = [batch(model, seed) for seed in range(3)]
    return {key: torch.cat([part[key] for part in parts])[: len(NAMES)] for key in parts[0]}


def alone(model: nn.Module, name: str | None, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of a model with this set alone. For the base, the logits before anything was attached."""
    other = copy.deepcopy(model)
    values = None if name is None else get_rows(model).row_sets[name].rows.detach()
    role = vars(other)["_kslottery_attachment"].output
    detach_rows(other)
    if name is not None:
        attach_rows(other, SETS[name], output=role)
        with torch.no_grad():
            get_rows(other).rows.copy_(values)
    return logits(other, inputs)


@pytest.mark.parametrize("role", ["frozen", "tied"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_mixed_batch_gives_each_example_what_its_set_gives_alone(name, role):
    model = several(make(name), output=role)
    inputs = wide_batch(model)
    want = torch.cat(
        [alone(model, set_name, {key: v[i : i + 1] for key, v in inputs.items()}) for i, set_name in enumerate(NAMES)]
    )
    with mixed_rows(model, NAMES) as mixed:
        got = logits(mixed, inputs)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
    plain = logits(model, inputs)
    assert (plain - want).abs().amax(dim=(1, 2))[[0, 1, 3, 4]].min() > 0.01  # the sets differ, and differ from the base


def test_a_mixed_batch_on_an_untied_model_is_right_too():
    model = several(make("llama", tied=False))
    inputs = wide_batch(model)
    want = torch.stack([alone(model, name, inputs)[i] for i, name in enumerate(NAMES)])
    with mixed_rows(model, NAMES):
        torch.testing.assert_close(logits(model, inputs), want)


@pytest.mark.parametrize("role", ["frozen", "tied"])
def test_switching_gives_what_each_set_gives_alone_and_copies_nothing(role):
    model = several(make("llama"), output=role)
    inputs = batch(model)
    pointers = {name: row_set.rows.data_ptr() for name, row_set in get_rows(model).row_sets.items()}
    for name in ("de", None, "fr", "default"):
        assert use_rows(model, name) is model
        assert torch.equal(logits(model, inputs), alone(model, name, inputs))
    assert {name: row_set.rows.data_ptr() for name, row_set in get_rows(model).row_sets.items()} == pointers
    assert get_rows(use_rows(model, "fr")).token_ids.tolist() == SETS["fr"]
    assert get_rows(model).rows.data_ptr() == pointers["fr"]


@pytest.mark.parametrize("name", ["llama", "m2m100"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_mixes_sets_with_and_without_beams(name, beams):
    model = several(make(name), output="tied")
    with torch.no_grad():  # large enough for tokens that depend on what was read
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter.shape[0] != V and parameter.shape[0] > 4:
                parameter.mul_(20)
    inputs = {key: wide_batch(model)[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    want = []
    for i, set_name in enumerate(NAMES):
        use_rows(model, set_name)
        want.append(model.generate(**{key: v[i : i + 1] for key, v in inputs.items()}, **options))
    with mixed_rows(model, NAMES, copies=beams):
        got = model.generate(**inputs, **options)
    assert torch.equal(got, torch.cat(want))
    assert len({tuple(row) for row in got[:, -5:].tolist()}) > 1


def test_every_set_of_a_mixed_batch_gets_the_gradient_of_its_own_examples():
    model = several(make("llama"), output="tied")
    inputs, sets = wide_batch(model), get_rows(model).row_sets
    with mixed_rows(model, NAMES):
        model(**inputs).logits.square().sum().backward()
    got = {name: row_set.rows.grad.clone() for name, row_set in sets.items()}
    for name, row_set in sets.items():
        row_set.rows.grad = None
        mine = [i for i, other in enumerate(NAMES) if other == name]
        use_rows(model, name)(**{key: v[mine] for key, v in inputs.items()}).logits.square().sum().backward()
        torch.testing.assert_close(got[name], row_set.rows.grad, rtol=1e-4, atol=1e-4 * got[name].abs().max().item())


def test_a_set_that_is_not_read_gets_no_gradient_and_does_not_move():
    model = several(make("llama"))
    sets = get_rows(model).row_sets
    before = {name: row_set.rows.detach().clone() for name, row_set in sets.items()}
    optimizer = RowAdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.1)
    assert len(optimizer.param_groups[0]["params"]) == 3
    use_rows(model, "fr")(**batch(model)).logits.sum().backward()
    optimizer.step()
    assert not torch.equal(sets["fr"].rows, before["fr"])
    assert all(torch.equal(sets[name].rows, before[name]) for name in ("default", "de"))


def test_sets_follow_casts_copies_and_state_dicts():
    model = several(make("llama"))
    other = several(make("llama"))
    other.load_state_dict(model.state_dict())
    copied = copy.deepcopy(model)
    for each in (other, copied):
        assert torch.equal(logits(use_rows(each, "de"), batch(each)), logits(use_rows(model, "de"), batch(model)))
    with torch.no_grad():
        get_rows(copied).rows.zero_()
    assert get_rows(model).rows.abs().min() > 0
    assert {row_set.rows.dtype for row_set in get_rows(model.bfloat16()).row_sets.values()} == {torch.float32}


def test_detaching_takes_all_sets_off_and_merging_wants_a_decision():
    model = several(make("llama"))
    base = alone(model, None, batch(model))
    use_rows(model, "de")
    with pytest.raises(InputError, match="merging would lose the sets 'default', 'fr'; save them"):
        merge_rows(model)
    want = logits(model, batch(model))
    other = copy.deepcopy(model)
    for name in ("default", "fr"):
        assert remove_rows(model, name) is model
    assert row_sets(model) == ("de",)
    assert torch.equal(logits(merge_rows(model), batch(model)), want)
    assert torch.equal(logits(detach_rows(other), batch(other)), base)
    assert row_sets(other) == ()


def test_a_padding_row_gets_no_gradient_in_any_set():
    model = attach_rows(make("llama"), [5])
    add_rows(model, "fr", [7, 0])
    inputs = batch(model)
    inputs["input_ids"][:, 2] = 0
    with mixed_rows(model, ["fr", "default"]):
        model(**inputs).logits.square().sum().backward()
    gradient = get_rows(model).row_sets["fr"].rows.grad
    assert gradient[1].abs().max() == 0
    assert gradient[0].abs().min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: add_rows(m, "fr", [1]), "a set named 'fr' is attached already"),
        (lambda m: add_rows(m, "e.n", [1]), "name is 'e.n': expected a string without dots"),
        (lambda m: add_rows(m, "", [1]), "name is ''"),
        (lambda m: add_rows(m, "train", [1]), "name is 'train'"),
        (lambda m: add_rows(m, "en", [1, 1]), "token_ids has 1 more than once"),
        (lambda m: add_rows(m, "en", [V]), f"token_ids has {V}, outside"),
        (lambda m: use_rows(m, "en"), "no set is named 'en'; attached are 'default', 'fr', 'de'"),
        (lambda m: remove_rows(m, "en"), "no set is named 'en'"),
        (lambda m: remove_rows(m, "default"), "'default' is in use; switch to another set"),
        (lambda m: mixed_rows(m, ["en"]).__enter__(), "no set is named 'en'"),
        (lambda m: mixed_rows(m, "fr").__enter__(), "names is 'fr': expected one name"),
        (lambda m: mixed_rows(m, []).__enter__(), r"names is the list \[\]"),
        (lambda m: mixed_rows(m, ["fr"], copies=0).__enter__(), "copies is 0: expected at least 1"),
        (lambda m: attach_rows(m, [1], name="en"), "attached to this model already"),
    ],
)
def test_bad_names_and_ids_are_refused_and_the_model_stays_as_it_was(change, message):
    model = several(make("llama"))
    want = logits(model, batch(model))
    with pytest.raises(InputError, match=message):
        change(model)
    assert row_sets(model) == ("default", "fr", "de")
    assert torch.equal(logits(model, batch(model)), want)


@pytest.mark.parametrize("role", ["frozen", "tied"])
def test_supervised_logits_of_a_mixed_batch_are_right_or_refused(role):
    model = several(make("llama"), output=role)
    inputs = batch(model)
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][0, :5] = -100
    with mixed_rows(model, ["fr", "default"]):
        if role == "tied":
            with pytest.raises(InputError, match=r"a head that follows mixed_rows .* call model\(\*\*batch\)"):
                supervised_logits(model, inputs)
        else:
            got, targets = supervised_logits(model, inputs)
            want = logits(model, inputs)[:, :-1][inputs["labels"][:, 1:] != -100]
            assert len(targets) == len(want) == 12
            torch.testing.assert_close(got, want)
    assert supervised_logits(model, inputs)[0].shape == (12, V)


def test_the_only_set_and_a_model_without_rows_are_refused():
    model = attach_rows(make("llama"), TOKENS)
    with pytest.raises(InputError, match="'default' is the only set; call detach_rows"):
        remove_rows(model, "default")
    for function in (add_rows, use_rows):
        with pytest.raises(InputError, match="no rows are attached"):
            function(make("llama"), "fr", *([[1]] if function is add_rows else []))


def test_a_batch_of_another_size_is_refused_and_the_next_one_works():
    model = several(make("llama"))
    inputs = batch(model)
    want = logits(model, inputs)
    with (
        pytest.raises(
            InputError,
            match="the batch has 2 examples, but the names given to mixed_rows are for 3; give one name for each",
        ),
        mixed_rows(model, ["fr", "de", None]),
    ):
        model(**inputs)
    with pytest.raises(InputError, match=r"for 2 or 6 \(copies=3\); give"), mixed_rows(model, ["fr", "de"], copies=3):
        model(input_ids=inputs["input_ids"][:1])
    assert torch.equal(logits(model, inputs), want)


def test_with_no_set_in_use_what_needs_rows_says_so():
    model = use_rows(several(make("llama")), None)
    for needs_rows in (
        lambda: get_rows(model).rows,
        lambda: get_rows(model).token_ids,
        lambda: get_rows(model).slots,
        lambda: merge_rows(model),
        lambda: ks_select_rows(model),
    ):
        with pytest.raises(InputError, match="no rows are in use; call use_rows"):
            needs_rows()

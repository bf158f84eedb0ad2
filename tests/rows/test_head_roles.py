"""Which role the head gets, what is said about it, and which heads and ids are refused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers as T
from tiny_models import TOKENS, V, batch, logits, make
from torch import nn

from kslottery_fast import InputError, add_rows, attach_rows, get_rows, has_rows, mixed_rows, transfer_rows
from kslottery_fast.rows import get_output_rows, output_role
from kslottery_fast.rows.new_token_marks import NEW_TOKENS


def with_new_tokens(*, tied: bool) -> T.PreTrainedModel:
    """Two tokens were added, as kslottery_fast.add_tokens leaves it."""
    model = make("llama", tied=tied)
    model.resize_token_embeddings(V + 2, mean_resizing=False)
    setattr(model, NEW_TOKENS, (V, V + 1))
    return model


@pytest.mark.parametrize(
    ("tied", "ids", "role", "output_ids"),
    [
        (True, [V, V + 1], "tied", None),
        (True, [V, 7], "tied", None),
        (False, [V + 1, V], "own", [V + 1, V]),
        (False, [7, V, 5], "own", [V]),
        (True, [7, 5], "frozen", None),
        (False, [7, 5], "frozen", None),
    ],
)
def test_rows_that_no_training_has_seen_train_as_outputs_too(tied, ids, role, output_ids):
    model = attach_rows(with_new_tokens(tied=tied), ids)
    assert output_role(model) == role
    assert f"output={role!r}" in get_rows(model).summary()
    if role == "own":
        assert get_output_rows(model).token_ids.tolist() == output_ids
    else:
        with pytest.raises(InputError, match=f"attached with output={role!r}"):
            get_output_rows(model)


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_token_is_learned_as_an_output(tied):
    """With a frozen head the loss at the new token cannot fall far, since its logit has a row that does not train."""
    falls = {}
    for output in ("auto", "frozen"):
        model = attach_rows(with_new_tokens(tied=tied), [V, V + 1], output=output)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.0)
        ids, losses = torch.tensor([[3, 9, V, 11, V + 1]]), []
        for _ in range(40):
            optimizer.zero_grad()
            found = model(input_ids=ids).logits[0, [1, 3]]
            loss = nn.functional.cross_entropy(found, torch.tensor([V, V + 1]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        falls[output] = losses[0] - losses[-1]
    assert falls["auto"] > 2
    assert falls["frozen"] < 0.5


def test_an_explicit_role_is_kept_and_a_model_without_a_head_has_no_role_to_choose():
    assert output_role(attach_rows(with_new_tokens(tied=True), [V], output="frozen")) == "frozen"
    inner = with_new_tokens(tied=True).model
    setattr(inner, NEW_TOKENS, (V,))
    assert output_role(attach_rows(inner, [V])) == "frozen"
    assert "output head" not in get_rows(inner).summary()


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_added_since_the_tokenizer_was_loaded_are_warned_of(tied, tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = T.AutoTokenizer.from_pretrained(tmp_path)
    model = T.LlamaForCausalLM(
        T.LlamaConfig(
            vocab_size=len(tokenizer) + 2,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old = attach_rows(copy.deepcopy(model), [0, 1, 2, 7], tokenizer=tokenizer)
        tokenizer.add_tokens(["<red>", "<blue>"])
        attach_rows(copy.deepcopy(model), [0, 1, 2, 7], tokenizer=tokenizer)
        attach_rows(copy.deepcopy(model), ["<red>"], tokenizer=tokenizer, output="frozen")
    assert output_role(old) == "frozen"
    role = "tied" if tied else "own"
    with pytest.warns(RuntimeWarning, match=f"1 of the token ids were added .*'<red>' .*Pass output='{role}' so"):
        attach_rows(model, ["<red>", "a"], tokenizer=tokenizer)


def test_a_padding_row_is_warned_of_and_trains_where_that_is_wanted(tiny_tokenizer):
    inputs = batch(make("llama"))
    inputs["input_ids"][:, 2] = 0
    gradients = {}
    for choice in (None, False, True):
        model = make("llama")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attach_rows(model, [5, 0], train_padding=choice)
            add_rows(model, "fr", [0], train_padding=choice)
        assert len(caught) == (2 if choice is None else 0)
        for each in caught:
            assert "token_ids has the padding token 0, whose input row does not train" in str(each.message)
            assert each.filename == __file__
        model(**inputs).logits.square().mean().backward()
        gradients[choice] = get_rows(model).rows.grad
    assert gradients[None][1].abs().max() == gradients[False][1].abs().max() == 0
    dense = make("llama")
    dense.get_input_embeddings().padding_idx = None
    dense.lm_head.weight = nn.Parameter(dense.lm_head.weight.detach().clone(), requires_grad=False)
    dense(**inputs).logits.square().mean().backward()
    torch.testing.assert_close(gradients[True], dense.get_input_embeddings().weight.grad[[5, 0]])
    embedding = nn.Embedding(320, 4, padding_idx=2)
    with pytest.warns(RuntimeWarning, match=r"the padding token 2 \('<\|im_end\|>'\)"):
        attach_rows(embedding, [2], tokenizer=tiny_tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach_rows(make("llama"), [5, 0], output="tied")  # the head trains it


class _Scaled(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden) * 2


def scaled_head(model: nn.Module) -> nn.Module:
    head = _Scaled(16, V, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    return model


def shorter_head(model: nn.Module) -> nn.Module:
    model.lm_head = nn.Linear(16, 30, bias=False)
    return model


def replaced_forward(model: nn.Module) -> nn.Module:
    model.lm_head.forward = lambda hidden: hidden
    return model


def wrapped_head(model: nn.Module) -> nn.Module:
    wrapper = nn.Module()
    wrapper.base_layer = model.lm_head
    model.lm_head = wrapper
    return model


def meta_head(model: nn.Module) -> nn.Module:
    model.lm_head.to("meta")
    return model


def damaged_head(model: nn.Module) -> nn.Module:
    model.lm_head.weight.data[40, 3] = float("nan")
    return model


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda model: model.model, {}, "output='own' needs a model with an output head, and LlamaModel has none"),
        (lambda model: model.model.embed_tokens, {}, "needs a model with an output head, and Embedding has none"),
        (shorter_head, {}, r"token_ids \(for the output head; output_ids= gives it others\) has 40, outside 0..29"),
        (shorter_head, {"output_ids": [7, 30]}, r"output_ids has 30, outside 0..29"),
        (lambda model: model, {"output_ids": [7, 7]}, "output_ids has 7 more than once"),
        (lambda model: model, {"output_ids": []}, "output_ids is empty"),
        (
            lambda model: model,
            {"output": "auto", "output_ids": [7]},
            "output_ids are the tokens of .* output is 'auto'",
        ),
        (lambda model: model, {"output": "frozen", "output_ids": [7]}, "pass output='own', or leave output_ids out"),
        (scaled_head, {}, "output='own' needs a head that multiplies by the table .*_Scaled does more"),
        (replaced_forward, {}, "the output head's forward has been replaced on the instance"),
        (wrapped_head, {}, "the output head is wrapped by PEFT"),
        (meta_head, {}, "the output head has no values .device meta."),
        (damaged_head, {}, "the weight of the output head is damaged: 1 of 3 rows .*token ids 40"),
    ],
)
def test_heads_and_ids_that_do_not_fit_are_refused_and_nothing_is_changed(spoil, options, message):
    model = spoil(make("llama", tied=False))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    classes = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match=message):
        attach_rows(model, TOKENS, **{"output": "own", **options})
    assert not has_rows(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert [type(module) for module in model.modules()] == classes


def test_other_doors_refuse_rows_of_a_head_that_has_none():
    model = attach_rows(make("llama"), TOKENS)
    with pytest.raises(InputError, match="output_ids are the tokens of the head's own rows, and output is 'frozen'"):
        add_rows(model, "fr", [9], output_ids=[9])
    own = attach_rows(make("llama"), TOKENS, output="own")
    with pytest.raises(InputError, match=r"output_ids has 60, outside 0\.\.59"):
        add_rows(own, "fr", [9], output_ids=[V])
    assert list(get_rows(own).row_sets) == ["default"]
    with pytest.raises(TypeError, match="train_padding is 'no': expected True or False"):
        attach_rows(make("llama"), TOKENS, train_padding="no")
    table = torch.ones(V, 16)
    for source, target, message in [
        (make("llama"), table, "output='own' needs a target that is a model"),
        (table, make("llama"), "output='own' needs a source that is a model"),
        (make("llama"), make("llama").model, "output='own' needs a model with an output head, and LlamaModel"),
        (make("llama").model, make("llama"), "output='own' needs a source that is a model with an output head"),
        (make("llama"), shorter_head(make("llama", tied=False)), "has 40, outside 0..29"),
    ]:
        before = copy.deepcopy(state_of(target))
        with pytest.raises(InputError, match=message):
            transfer_rows(source, target, TOKENS, output="own")
        assert all(torch.equal(value, before[key]) for key, value in state_of(target).items())


def state_of(target: nn.Module | torch.Tensor) -> dict[str, torch.Tensor]:
    return {"table": target} if torch.is_tensor(target) else target.state_dict()


def test_a_head_of_another_height_than_the_table_trains_its_own_ids():
    model = attach_rows(shorter_head(make("llama", tied=False)), TOKENS, output="own", output_ids=[29, 3])
    assert get_output_rows(model).slots.shape == (30,)
    before = logits(model, batch(model))
    with torch.no_grad():
        get_output_rows(model).rows.zero_()
    after = logits(model, batch(model))
    assert (after != before).any(dim=1).any(dim=0).nonzero().flatten().tolist() == [3, 29]
    assert after[..., [29, 3]].abs().max() == 0


def test_a_mixed_batch_for_joined_positions_is_refused_for_a_head_of_its_own():
    from kslottery_fast.evaluation.logits import supervised_logits

    model = attach_rows(make("llama"), TOKENS, output="own")
    inputs = batch(model)
    with mixed_rows(model, ["default", None]), pytest.raises(InputError, match="joins the positions of all examples"):
        supervised_logits(model, {**inputs, "labels": inputs["input_ids"]})


def test_the_word_for_added_tokens_is_known_to_the_head_and_to_transfers():
    model = attach_rows(with_new_tokens(tied=False), [7, 5], output="own", output_ids="added")
    assert get_output_rows(model).token_ids.tolist() == [V, V + 1]
    add_rows(model, "fr", "added", output_ids="added")
    assert get_rows(model).row_sets["fr"].output.token_ids.tolist() == [V, V + 1]
    source, target = with_new_tokens(tied=False), with_new_tokens(tied=False)
    with torch.no_grad():
        source.lm_head.weight.fill_(1.0)
        source.get_input_embeddings().weight.fill_(2.0)
    transfer_rows(source, target, "added", output="own", output_ids="added")
    assert (target.lm_head.weight == 1.0).all(dim=1).nonzero().flatten().tolist() == [V, V + 1]
    assert (target.get_input_embeddings().weight == 2.0).all(dim=1).nonzero().flatten().tolist() == [V, V + 1]


def test_a_bias_that_does_not_fit_the_dtype_of_the_target_is_not_transferred():
    source, target = make("phi", tied=False), make("phi", tied=False).half()
    with torch.no_grad():
        source.lm_head.bias[7] = 1e6
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(InputError, match="cannot transfer into the bias of the head: 1 of 2 rows"):
        transfer_rows(source, target, [7, 9], output="own")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_a_resize_has_just_made_are_warned_of_without_a_tokenizer(tied):
    model = make("llama", tied=tied)
    model.resize_token_embeddings(V + 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        attach_rows(copy.deepcopy(model), list(range(1, V)))
        attach_rows(copy.deepcopy(model), [V, V + 1], output="frozen")
    role = "tied" if tied else "own"
    with pytest.warns(RuntimeWarning, match=rf"2 of the token ids \({V}, {V + 1}\) .*Pass output='{role}' so that"):
        attach_rows(model, [7, V + 1, V])

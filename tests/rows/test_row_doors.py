"""Wrong arguments are refused by name before anything is changed, and objects say in one line what they are."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TOKENS, V, batch, logits, make, tuned
from torch import nn

from kslottery_fast import rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows import (
    add_rows,
    attach_rows,
    detach_rows,
    get_rows,
    has_rows,
    merge_rows,
    mixed_rows,
    remove_rows,
    use_rows,
)
from kslottery_fast.rows.tables import embedding_table

OF_A_MODEL = {
    "attach_rows": ([1],),
    "add_rows": ("fr", [1]),
    "use_rows": ("fr",),
    "remove_rows": ("fr",),
    "mixed_rows": (["fr"],),
    "save_adapter": ("folder",),
    "load_adapter": ("folder",),
    **dict.fromkeys(("attached_model", "detach_rows", "embedding_table", "gather_rows", "get_rows", "has_rows"), ()),
    **dict.fromkeys(("is_tied", "merge_rows", "output_role", "replicate_rows", "row_sets", "untie_output"), ()),
}


@pytest.mark.parametrize("wrong", ["gpt2", None, 3, [1, 2]])
@pytest.mark.parametrize("function", OF_A_MODEL)
def test_what_is_no_model_is_refused(function, wrong):
    with pytest.raises(TypeError, match=r"^model is .*: expected a model"):
        getattr(rows, function)(wrong, *OF_A_MODEL[function])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: attach_rows(m, [1], freeze="no"), "freeze is 'no': expected True or False"),
        (lambda m: attach_rows(m, [1], name=None), "name is None: expected a string without dots"),
        (lambda m: attach_rows(m, [1], name="training"), "name is 'training': expected .* not an attribute of a"),
        (lambda m: attach_rows(m, [1], name="_modules"), "name is '_modules'"),
        (lambda m: attach_rows(m, [1], output=None), "output is None: expected 'auto', 'frozen', 'tied' or 'own'"),
        (lambda m: attach_rows(m, [1], tokenizer=m), "tokenizer is an? .*: expected a tokenizer"),
        (lambda m: attach_rows(m, m), "token_ids is an? .*: expected a list of token ids"),
        (lambda m: use_rows(attach_rows(m, [1]), 3), "name is 3: expected the name of an attached set, 'def"),
        (lambda m: mixed_rows(attach_rows(m, [1]), [3]), "names has 3: expected the name of an attached set"),
        (lambda m: mixed_rows(attach_rows(m, [1]), None), "names is None: expected one name"),
        (lambda m: mixed_rows(attach_rows(m, [1]), [None], copies="2"), "copies is '2': expected an integer"),
    ],
)
def test_other_arguments_are_refused_by_name_and_the_model_stays_as_it_was(change, message):
    model = nn.Embedding(V, 4)
    with pytest.raises((InputError, TypeError), match=message):
        change(model)
    assert not has_rows(model) or get_rows(model).row_sets.active == "default"


class ScaledHead(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden) * 0.5


class TanhHead(nn.Linear):
    def forward(self, hidden):
        return 30 * torch.tanh(super().forward(hidden) / 30)


class ShiftedHead(nn.Linear):
    def forward(self, hidden, shift):
        return super().forward(hidden + shift)


class PlainHead(nn.Linear):
    def forward(self, hidden):
        return torch.einsum("...d,vd->...v", hidden, self.weight)


def with_head(kind: type[nn.Linear], dtype: torch.dtype = torch.float32) -> nn.Module:
    model = make("llama").to(dtype)
    head = kind(16, V, bias=False)
    head.weight = embedding_table(model)
    model.set_output_embeddings(head)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "message"),
    [(ScaledHead, "does more"), (TanhHead, "does more"), (ShiftedHead, "maps hidden states alone to logits: .*shift")],
)
def test_rows_are_not_tied_to_a_head_that_is_more_than_a_product(kind, message, dtype):
    model = with_head(kind, dtype)
    with pytest.raises(InputError, match=f"output='tied' needs a head that .*{message}"):
        attach_rows(model, TOKENS, output="tied")
    assert not has_rows(model)
    if kind is not ShiftedHead:
        want = logits(model, batch(model))
        assert torch.equal(logits(attach_rows(model, TOKENS), batch(model)), want)  # frozen, it keeps what it does


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_head_that_computes_the_same_product_its_own_way_is_taken(dtype):
    model = with_head(PlainHead, dtype)
    with torch.no_grad():
        embedding_table(model)[TOKENS] = 0  # such rows tell nothing of a head
    want = logits(model, batch(model))
    attach_rows(model, TOKENS, output="tied")
    torch.testing.assert_close(logits(model, batch(model)), want)


def test_a_head_whose_forward_was_replaced_is_refused():
    model = make("llama")
    model.lm_head.forward = lambda hidden: nn.functional.linear(hidden, model.lm_head.weight) * 0.5
    with pytest.raises(InputError, match="output head's forward has been replaced on the instance"):
        attach_rows(model, TOKENS, output="tied")
    assert not has_rows(model)


def test_a_set_that_the_running_batch_reads_is_not_removed():
    model = add_rows(add_rows(attach_rows(nn.Embedding(V, 4), [1]), "fr", [2]), "de", [3])
    with mixed_rows(model, ["fr", None]):
        with pytest.raises(InputError, match="'fr' is read by the mixed_rows block that is running; remove it after"):
            remove_rows(model, "fr")
        remove_rows(model, "de")
        assert model(torch.tensor([[1], [2]])).shape == (2, 1, 4)
    with mixed_rows(model, ["fr"]):
        with (
            mixed_rows(model, ["default"]),
            pytest.raises(InputError, match="'fr' is read by the mixed_rows block that is running"),
        ):
            remove_rows(model, "fr")
        assert model(torch.tensor([[2]])).shape == (1, 1, 4)
    late = mixed_rows(model, ["fr"])
    assert rows.row_sets(remove_rows(model, "fr")) == ("default",)
    with pytest.raises(InputError, match="names: no set is named 'fr'"), late:
        pass


def test_a_container_of_two_models_is_detached_whole_and_otherwise_ambiguous():
    models = nn.ModuleList([tuned(make("llama")), tuned(make("gpt2"), output="tied")])
    want = [logits(make("llama"), batch(models[0])), logits(make("gpt2"), batch(models[1]))]
    for function in (get_rows, merge_rows, rows.attached_model, rows.output_role, rows.row_sets, rows.gather_rows):
        with pytest.raises(InputError, match=r"model holds .*models with attached rows; pass one of them"):
            function(models)
    assert detach_rows(models) is models
    assert not has_rows(models)
    assert all(torch.equal(logits(each, batch(each)), base) for each, base in zip(models, want, strict=True))
    assert all(parameter.requires_grad for parameter in models.parameters())
    with pytest.raises(InputError, match="no rows are attached"):
        detach_rows(models)


def test_one_line_says_what_an_attached_module_is():
    model = add_rows(attach_rows(make("gemma"), TOKENS, output="tied"), "fr", [9])
    embedding = get_rows(model)
    assert repr(embedding) == (
        "RowGemmaTextScaledWordEmbedding(60, 16, padding_idx=0, rows={'default': 3, 'fr': 1}, in_use='default')"
    )
    assert repr(model.lm_head) == (
        "RowLinear(in_features=16, out_features=60, bias=False, rows={'default': 3, 'fr': 1}, in_use='default')"
    )
    assert repr(use_rows(model, None).lm_head).endswith("in_use=None)")
    assert repr(embedding.row_sets) == "RowSets({'default': 3, 'fr': 1}, in_use=None)"
    assert repr(embedding.row_sets["fr"]) == "RowSet(k=1, d=16, V=60)"
    embedding.row_sets["fr"].rows.requires_grad_(False)
    assert use_rows(model, "fr").lm_head.summary().splitlines() == [
        "'default': 3 of 60 rows, d=16, float32, trainable",
        "'fr' (in use): 1 of 60 rows, d=16, float32, frozen",
        "output head: follows these rows (output='tied')",
    ]

"""add_tokens: new tokens get rows in every table, which start from what was asked for, or nothing is changed."""

from __future__ import annotations

import copy
import string

import pytest
import torch
import transformers as T
from tiny_models import ALL, V, in_own_memory, make
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import nn

from kslottery_fast import add_tokens
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attach_rows, get_rows
from kslottery_fast.rows.new_token_marks import new_tokens
from kslottery_fast.rows.tables import embedding_table, is_tied
from kslottery_fast.rows.token_ids import check_token_ids

LETTERS = (string.ascii_letters + " .,:<>|_")[:V]
TOKENS = ["<person>", "<place>"]


def letters(**options: bool) -> T.PreTrainedTokenizerFast:
    """A tokenizer with a token for each of 60 characters."""
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    backend.decoder = decoders.Fuse()
    return T.PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def bert(head: str = "MaskedLM") -> T.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = getattr(T, f"BertFor{head}")(T.BertConfig(vocab_size=V, pad_token_id=0, **sizes)).eval()
    if head == "MaskedLM":
        with torch.no_grad():
            model.cls.predictions.bias.normal_()
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def head_of(model: nn.Module) -> nn.Module:
    return model.get_output_embeddings()


def pieces(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


GIVEN = torch.linspace(-1, 1, 32).view(2, 16)


@pytest.mark.parametrize(
    ("init", "first", "second"),
    [
        ("mean", range(V), range(V)),
        ("pieces", pieces("<person>"), pieces("<place>")),
        (7, [7], [7]),
        (GIVEN, GIVEN[0], GIVEN[1]),
        ({"<place>": "a town", "<person>": 5}, [5], pieces("a town")),
        ({"<place>": GIVEN[1], "<person>": "you"}, pieces("you"), GIVEN[1]),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_start_from_what_was_asked_for_and_the_others_stay(init, first, second, tied):
    model, tokenizer = make("llama", tied=tied), letters()
    table, head = embedding_table(model).detach().clone(), head_of(model).weight.detach().clone()
    assert add_tokens(model, tokenizer, TOKENS, init=init) == [V, V + 1]
    assert tokenizer("a<place>b", add_special_tokens=False)["input_ids"] == [0, V + 1, 1]
    assert is_tied(model) == tied
    for old, new, is_head in ((table, embedding_table(model), False), (head, head_of(model).weight, True)):
        assert torch.equal(new[:V], old)
        for row, source in zip(new[V:], (first, second), strict=True):
            if torch.is_tensor(source):  # no row of an untied head was given
                want = old.mean(0) if is_head and not tied else source
            else:
                want = old[list(source)].mean(0)
            assert torch.equal(row, want)
    assert model.config.vocab_size == len(new) == V + 2


def test_an_untied_head_can_start_from_something_else():
    model, tokenizer = make("llama", tied=False), letters()
    add_tokens(model, tokenizer, TOKENS, init="mean", output_init={"<person>": 3, "<place>": GIVEN[0]})
    assert torch.equal(embedding_table(model)[V], embedding_table(model)[:V].mean(0))
    assert torch.equal(head_of(model).weight[V:], torch.stack([head_of(model).weight[3], GIVEN[0]]))


MODELS = {name: lambda name=name: make(name) for name in ALL} | {"bert": bert}


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_reads_and_predicts_them_also_after_it_was_saved(name, tmp_path):
    model, tokenizer = MODELS[name](), letters()
    tied, bias = is_tied(model), getattr(head_of(model), "bias", None)
    bias = None if bias is None else bias.detach().clone()
    ids = add_tokens(model, tokenizer, TOKENS, init={"<person>": 5, "<place>": "ab"}, pad_to_multiple_of=8)
    assert ids == [V, V + 1]
    assert is_tied(model) == tied
    inputs = {"input_ids": torch.tensor([[5, 9, 12]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[5, 9]])
    changed = {key: torch.where(value == 5, V, value) for key, value in inputs.items()}
    with torch.no_grad():
        logits, again = model(**inputs).logits, model(**changed).logits
        assert logits.shape[-1] == 64
        assert torch.equal(logits, again)  # "<person>" is read as token 5 ...
        torch.testing.assert_close(logits[..., V], logits[..., 5])  # ... and predicted as it is
        if bias is not None:
            assert torch.equal(
                head_of(model).bias[[V, V + 1, V + 2]], torch.stack([bias[5], bias[:2].mean(), bias.mean()])
            )
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.equal(loaded(**changed).logits, again)


def test_copies_of_the_table_in_encoder_and_decoder_get_the_same_rows():
    torch.manual_seed(0)
    config = T.M2M100Config(
        vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, tie_word_embeddings=False, pad_token_id=0
    )
    model = T.M2M100ForConditionalGeneration(config)
    parts = [model.model.shared, model.model.encoder.embed_tokens, model.model.decoder.embed_tokens]
    with torch.no_grad():
        for part in parts[1:]:
            part.weight.copy_(parts[0].weight)
    add_tokens(model, letters(), TOKENS, init="pieces")
    tables = [model.model.shared, model.model.encoder.embed_tokens, model.model.decoder.embed_tokens]
    assert torch.equal(tables[0].weight[V], tables[0].weight[pieces("<person>")].mean(0))
    assert all(torch.equal(part.weight, tables[0].weight) for part in tables)
    assert not is_tied(model)


def test_a_table_that_is_tall_enough_does_not_grow_but_its_rows_are_made():
    model, tokenizer = make("llama", tied=False), letters()
    model.resize_token_embeddings(64, mean_resizing=False)
    table, head = embedding_table(model), head_of(model)
    before = state(model)
    assert add_tokens(model, tokenizer, TOKENS) == [V, V + 1]
    assert embedding_table(model) is table
    assert head_of(model) is head
    for key, value in ((("model.embed_tokens.weight"), table), ("lm_head.weight", head.weight)):
        old = before[key]
        assert torch.equal(value[V : V + 2], old[:V].mean(0).expand(2, -1))  # rows that no token has do not count
        assert torch.equal(torch.cat([value[:V], value[V + 2 :]]), torch.cat([old[:V], old[V + 2 :]]))


def test_tables_are_padded_with_the_mean():
    model = make("llama", tied=False)
    add_tokens(model, letters(), "<person>", init=3, pad_to_multiple_of=32)
    for table in (embedding_table(model), head_of(model).weight):
        assert len(table) == 64
        assert torch.equal(table[V], table[3])
        assert torch.equal(table[V + 1 :], table[:V].mean(0).expand(3, -1))


def test_noise_is_drawn_from_the_seed_in_units_of_the_table():
    made = []
    for seed in (0, 0, 1):
        model = make("llama", tied=False)
        torch.manual_seed(5)
        add_tokens(model, letters(), TOKENS, noise=0.5, seed=seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
        made.append(torch.cat([embedding_table(model)[V:], head_of(model).weight[V:]]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    model = make("llama", tied=False)
    table = embedding_table(model).detach().clone()
    add_tokens(model, letters(), [f"<{a}{b}>" for a in "abcdefgh" for b in "abcdefgh"], noise=0.5)
    spread = (embedding_table(model)[V:] - table.mean(0)).std() / (table - table.mean(0)).std()
    assert 0.45 < spread < 0.55  # 1,024 numbers


def test_special_tokens_are_left_out_of_decoded_text_and_others_are_not():
    model, tokenizer = make("llama"), letters()
    ids = [*add_tokens(model, tokenizer, "<tool>", special=True), *add_tokens(model, tokenizer, "<word>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<word>"


def test_an_added_token_says_where_it_is_found():
    model, tokenizer = make("llama"), letters()
    [word] = add_tokens(model, tokenizer, AddedToken("zorb", single_word=True))
    assert word not in tokenizer("zorbing")["input_ids"]
    assert word in tokenizer("so zorb is")["input_ids"]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {}, "tokens is empty"),
        (["<a>", " "], {}, "tokens has ' ': expected a string with a visible character"),
        (["<a>", "<b>", "<a>"], {}, "tokens has '<a>' more than once; remove the duplicates"),
        (["<a>", "c", "Z"], {}, r"2 that the tokenizer has already, with these ids: 'c' \(2\), 'Z' \(51\); leave them"),
        (["<a>"], {"init": "median"}, "init is 'median': expected 'mean' or 'pieces'"),
        (["<a>"], {"init": V}, "init is 60: expected a token id below 60"),
        (["é"], {"init": "pieces"}, "init: the tokenizer knows no piece of 'é'; give a description"),
        (["<a>"], {"init": {"<b>": "x"}}, "init lacks '<a>'; give every new token a text"),
        (["<a>"], {"init": {"<a>": "x", "<b>": 3}}, "init has '<b>', which is not added"),
        (["<a>"], {"init": {"<a>": -1}}, r"init\['<a>'\] is -1: expected at least 0"),
        (["<a>"], {"init": torch.zeros(2, 16)}, r"init is a tensor of shape \[2, 16\] .* expected \[1, 16\] of floats"),
        (["<a>"], {"init": torch.full((1, 16), torch.nan)}, "init holds NaN or Inf"),
        (["<a>"], {"output_init": "mean"}, "output_init is for an output head with a table of its own, which this"),
        (["<a>"], {"noise": -1.0}, "noise is -1.0: expected a finite number of at least 0"),
        (["<a>"], {"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0: expected at least 1"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_changed(tokens, options, message):
    model, tokenizer = make("llama"), letters()
    before, vocabulary = state(model), tokenizer.get_vocab()
    with pytest.raises(InputError, match=message):
        add_tokens(model, tokenizer, tokens, **options)
    assert tokenizer.get_vocab() == vocabulary
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert new_tokens(model) == ()


def test_what_would_not_be_one_token_is_refused_with_its_pieces():
    model, tokenizer = make("llama"), letters(split_special_tokens=True)
    with pytest.raises(
        InputError, match=r"'<a>', which would not be one token: .* reads '<a>' as '<', 'a', '>'; choose"
    ):
        add_tokens(model, tokenizer, "<a>", special=True)
    tokenizer = letters()
    tokenizer.add_tokens("o <")  # comes first in a sentence and takes the "<"
    with pytest.raises(
        InputError, match=r"'<a>', which would not be one token: .* reads 'so <a> is' as 's', 'o <', 'a'"
    ):
        add_tokens(model, tokenizer, "<a>")
    assert embedding_table(model).shape[0] == V
    assert len(tokenizer) == V + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: attach_rows(m, [3]), "model has attached rows: add the tokens before attach_rows"),
        (lambda m: m.lm_head.to("meta"), "the output head of model is offloaded, so it cannot grow; load the model"),
        (
            lambda m: setattr(m.model.embed_tokens, "weight", nn.Parameter(torch.zeros(V, 16).char(), False)),
            "the input table of model is quantized, so it cannot grow; add the tokens to the model before it is quant",
        ),
    ],
)
def test_tables_that_cannot_grow_are_refused_with_the_remedy(change, message):
    model, tokenizer = make("llama", tied=False), letters()
    change(model)
    with pytest.raises(InputError, match=message):
        add_tokens(model, tokenizer, TOKENS)
    assert len(tokenizer) == V


@pytest.mark.parametrize("tied", [True, False])
def test_a_failure_half_way_leaves_model_and_tokenizer_as_they_were(tied, monkeypatch):
    model, tokenizer = make("llama", tied=tied), letters()
    before, head, table = state(model), head_of(model), embedding_table(model)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(model), "tie_weights", fail)  # the last step of resize_token_embeddings
    with pytest.raises(InputError, match="could not grow, and nothing was changed: out of memory"):
        add_tokens(model, tokenizer, TOKENS)
    monkeypatch.undo()
    assert len(tokenizer) == V
    assert head_of(model) is head
    assert embedding_table(model) is table
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == model.vocab_size == V
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert add_tokens(model, tokenizer, TOKENS) == [V, V + 1]


def test_a_processor_and_an_embedding_alone_are_refused_with_the_remedy():
    class Processor:
        tokenizer = letters()

    with pytest.raises(TypeError, match=r"tokenizer is a Processor: expected a tokenizer; pass the .tokenizer of this"):
        add_tokens(make("llama"), Processor(), TOKENS)
    with pytest.raises(InputError, match="an Embedding, has 60 rows, too few for 62 tokens, and no resize_token_emb"):
        add_tokens(nn.Embedding(V, 4), letters(), TOKENS)


def test_added_means_the_tokens_that_were_added_to_the_model():
    model, tokenizer = make("llama"), letters()
    tokenizer.add_tokens("<its own>")
    model.resize_token_embeddings(V + 1, mean_resizing=False)
    ids = add_tokens(model, tokenizer, TOKENS)
    assert new_tokens(copy.deepcopy(model)) == tuple(ids)
    assert get_rows(attach_rows(model, "added")).token_ids.tolist() == ids


def test_added_means_the_tokens_beyond_the_base_vocabulary_of_a_tokenizer_otherwise(tiny_tokenizer):
    tokenizer = letters()
    tokenizer.add_special_tokens({"pad_token": "a"})  # an added token, but of the base vocabulary
    with pytest.raises(InputError, match="token_ids is 'added', but the tokenizer has no token beyond its base voc"):
        check_token_ids("added", V, tokenizer=tokenizer)
    tokenizer.add_tokens(TOKENS)
    assert check_token_ids("added", V + 2, tokenizer=tokenizer).tolist() == [V, V + 1]
    with pytest.raises(InputError, match=r"the table has 60 rows and none for the added tokens \(60, ...\); add the"):
        check_token_ids("added", V, tokenizer=tokenizer)
    with pytest.warns(RuntimeWarning, match=r"1 added tokens \(61, ...\) are left out, because the table has 61 rows"):
        assert check_token_ids("added", V + 1, tokenizer=tokenizer).tolist() == [V]
    with pytest.raises(InputError, match=r"token_ids is 'added', and no token was added to this model .*: pass token"):
        attach_rows(make("llama"), "added")


def clip(end: int) -> T.CLIPModel:
    text = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "eos_token_id": end}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
    heads = {"num_attention_heads": 2}
    return T.CLIPModel(T.CLIPConfig(text_config=text | heads, vision_config=vision | heads, projection_dim=8)).eval()


def test_tokens_of_clip_are_saved_with_its_text_model_and_pooled_at_the_end(tmp_path, recwarn):
    tokenizer = letters(eos_token="|")
    model = clip(end=tokenizer.eos_token_id)
    [token] = add_tokens(model, tokenizer, "<cat>", init="pieces")
    assert not [each for each in recwarn if "eos_token_id" in str(each.message)]
    inputs = {"input_ids": torch.tensor([[1, token, tokenizer.eos_token_id]])}
    model.save_pretrained(tmp_path)
    loaded = in_own_memory(T.CLIPModel.from_pretrained(tmp_path))
    assert loaded.config.text_config.vocab_size == V + 1
    with torch.no_grad():
        features = [each.get_text_features(**inputs).pooler_output for each in (model, loaded)]
    assert torch.equal(*features)


def test_a_clip_that_would_pool_at_the_new_token_is_warned_of():
    with pytest.warns(
        RuntimeWarning, match="CLIPTextModel has eos_token_id 2, .* which is now a new token; set its eos"
    ):
        add_tokens(clip(end=2), letters(eos_token="|"), "<cat>")

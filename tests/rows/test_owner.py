"""The table is found inside models that name no input embedding themselves."""

from __future__ import annotations

import pytest
import torch
import transformers as T
from tiny_models import TOKENS, V, in_own_memory, make
from torch import nn

from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attach_rows, detach_rows, get_rows, has_rows, merge_rows
from kslottery_fast.rows.overlay import RowEmbedding
from kslottery_fast.rows.owner import table_owner
from kslottery_fast.rows.tables import embedding_table

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip():
    torch.manual_seed(0)
    vision = SMALL | {"image_size": 8, "patch_size": 4}
    text = SMALL | {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()


def features(model):
    with torch.no_grad():
        return model.get_text_features(input_ids=torch.tensor([[1, 5, 7, 2]])).pooler_output


def test_rows_of_clip_are_those_of_its_text_model(tmp_path):
    model, plain = clip(), clip()
    attach_rows(model, TOKENS)
    assert get_rows(model) is model.text_model.get_input_embeddings()
    with torch.no_grad():
        get_rows(model).rows.add_(1.0)
        embedding_table(plain)[TOKENS] += 1.0
    assert torch.equal(features(model), features(plain))
    assert not torch.equal(features(model), features(clip()))
    with pytest.raises(InputError, match="with rows attached, save_pretrained"):
        model.save_pretrained(tmp_path)
    merge_rows(model).save_pretrained(tmp_path)
    assert torch.equal(features(in_own_memory(T.CLIPModel.from_pretrained(tmp_path))), features(plain))


def test_a_module_around_a_model_has_its_table():
    inner = make("llama")
    model = attach_rows(nn.ModuleDict({"backbone": inner, "pooler": nn.Linear(16, 16)}), TOKENS)
    assert get_rows(inner) is inner.get_input_embeddings()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "backbone.model.embed_tokens.row_sets.default.rows"
    }
    detach_rows(model)
    assert table_owner(model) is inner


def test_a_module_around_an_encoder_decoder_overlays_all_copies_of_the_table():
    inner = T.M2M100ForConditionalGeneration(
        T.M2M100Config(vocab_size=V, d_model=16, encoder_layers=1, decoder_layers=1, tie_word_embeddings=False)
    )
    with torch.no_grad():
        for part in (inner.model.encoder, inner.model.decoder):
            part.embed_tokens.weight.copy_(inner.model.shared.weight)
    outer = attach_rows(nn.Sequential(inner), TOKENS)
    names = [name for name, module in outer.named_modules() if isinstance(module, RowEmbedding)]
    assert names == ["0.model.shared", "0.model.encoder.embed_tokens", "0.model.decoder.embed_tokens"]


def test_several_tables_are_refused_by_their_names():
    model = nn.ModuleDict({"query": make("llama"), "passage": make("gpt2")})
    with pytest.raises(InputError, match="holds 2 models with an input embedding: query, passage; pass one of them"):
        attach_rows(model, TOKENS)
    assert not has_rows(model)


def test_replicas_of_a_model_are_refused():
    with pytest.raises(InputError, match="model, a DataParallel, has no input embedding"):
        attach_rows(nn.DataParallel(make("llama")), TOKENS)

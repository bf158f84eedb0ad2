"""Token ids as a user gives them: paths of ticket files, token strings, and the ids that a dataset reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from kslottery_fast import Tickets, transfer_rows
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attach_rows, get_rows, has_rows
from kslottery_fast.rows.token_ids import active_token_ids, check_token_ids

SETTINGS = {"vocab_size": 320, "dimension": 4, "threshold_count": 4, "alpha": 0.05}


@pytest.fixture
def saved(tmp_path, tiny_tokenizer):
    """A ticket file with texts."""
    Tickets.from_counts([300, 7], [4, 4], **SETTINGS).save(tmp_path / "tickets.json", tiny_tokenizer)
    return tmp_path / "tickets.json"


@pytest.fixture(scope="module")
def sentencepiece():
    """A SentencePiece vocabulary in lower case, in which " el" alone is read as two pieces."""
    pieces = ["<unk>", "▁el", "▁", "el", "e", "l", "▁hola"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁▁")])
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_a_path_of_a_ticket_file_is_taken_where_tickets_are(saved, tiny_tokenizer):
    want = Tickets.load(saved).token_ids
    assert torch.equal(get_rows(attach_rows(nn.Embedding(320, 4), saved)).token_ids, want)
    assert torch.equal(check_token_ids(str(saved), 320, tokenizer=tiny_tokenizer), want)
    table = transfer_rows(torch.ones(320, 4), torch.zeros(320, 4), saved)
    assert table.sum(dim=1).nonzero().flatten().tolist() == sorted(want.tolist())


def test_arrays_and_pandas_columns_are_taken_without_a_warning(recwarn):
    pandas = pytest.importorskip("pandas")
    frozen = np.array([7, 3], dtype=np.uint16)
    frozen.flags.writeable = False
    column = pandas.DataFrame({"token_id": [7, 3]}, index=pandas.RangeIndex(1, 3, name="rank"))["token_id"]
    for ids in (frozen, column, pandas.Index([7, 3]), column.astype("Int64"), range(7, 2, -4)):
        assert check_token_ids(ids, 10).tolist() == [7, 3]
    assert active_token_ids([{"input_ids": frozen}]).tolist() == [3, 7]
    assert not recwarn.list


def test_a_ticket_file_that_does_not_fit_is_refused_by_name(saved, tmp_path, tiny_tokenizer):
    with pytest.raises(InputError, match="tickets: these tickets are of a table with 320 rows, but this one has 60"):
        check_token_ids(saved, 60, "tickets")
    with pytest.raises(InputError, match=r"token_ids as the path of a ticket file: Spanish: no such file; token str"):
        check_token_ids("Spanish", 320, tokenizer=tiny_tokenizer)
    with pytest.raises(InputError, match=r"token_ids as the path of a ticket file: .*: Is a directory"):
        check_token_ids(tmp_path, 320)
    data = json.loads(saved.read_text())
    for change, message in [
        ({"format": "kslottery-tickets/2"}, "format is 'kslottery-tickets/2'"),
        ({"vocab_size": "320"}, "vocab_size is '320': expected an integer"),
        ({"token_ids": [1.5]}, "token_ids must be a list of integers"),
        ({"token_ids": [300, 8]}, "digest does not match: the file was changed"),
    ]:
        saved.write_text(json.dumps(data | change))
        with pytest.raises(InputError, match=message):
            check_token_ids(saved, 320)


def test_tickets_with_texts_are_checked_against_the_tokenizer(saved, sentencepiece, tiny_tokenizer):
    for tickets in (saved, Tickets.load(saved)):
        assert len(check_token_ids(tickets, 320, tokenizer=tiny_tokenizer)) == 2
        with pytest.raises(InputError, match=r"another tokenizer: token 7 is .%. in the tickets and missing in"):
            check_token_ids(tickets, 320, tokenizer=sentencepiece)


def test_strings_that_are_one_token_are_looked_up(tiny_tokenizer):
    assert check_token_ids(np.array([" Spanish"]), 320, tokenizer=tiny_tokenizer).shape == (1,)
    words = [" Spanish", "<|im_end|>", "\n", "Ġto"]  # the last in the spelling of the vocabulary
    ids = check_token_ids(words, 320, tokenizer=tiny_tokenizer).tolist()
    assert tiny_tokenizer.batch_decode([[token] for token in ids]) == [" Spanish", "<|im_end|>", "\n", " to"]
    embedding = attach_rows(nn.Embedding(320, 4), words, tokenizer=tiny_tokenizer)
    assert get_rows(embedding).token_ids.tolist() == ids


def test_a_leading_space_of_sentencepiece_is_kept(sentencepiece):
    assert len(sentencepiece(" el", add_special_tokens=False)["input_ids"]) == 2
    assert check_token_ids([" el", "el", "▁hola"], 7, tokenizer=sentencepiece).tolist() == [1, 3, 6]


def test_strings_that_are_not_one_token_are_refused_with_their_pieces(tiny_tokenizer, sentencepiece):
    model = nn.Embedding(320, 4)
    for strings, tokenizer, message in [
        (
            [" Spanish house"],
            tiny_tokenizer,
            "token_ids has ' Spanish house', which is not one token of this tokenizer",
        ),
        ([" Spanish house"], tiny_tokenizer, "it reads ' Spanish', ' ', 'ho', 'use'; name one of its tokens"),
        ([""], tiny_tokenizer, "it reads no token"),
        (["El"], sentencepiece, "'El', which is not one token of this tokenizer: it reads 'el'"),
        (["zzz"], sentencepiece, "it reads '<unk>'"),
        ([" Spanish"], None, "token_ids has the string ' Spanish': pass tokenizer= to look up token strings"),
        ([3, " Spanish"], tiny_tokenizer, "token_ids has strings and 3; give token ids or token strings"),
    ]:
        with pytest.raises(InputError, match=message):
            attach_rows(model, strings, tokenizer=tokenizer)
    with pytest.raises(TypeError, match="tokenizer is 'gpt2': expected a tokenizer; load it first"):
        attach_rows(model, [" Spanish"], tokenizer="gpt2")
    assert not has_rows(model)


class Wrapping(torch.utils.data.Dataset):
    """A map-style dataset without an end of its own."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"input_ids": [index % 3]}


def test_active_token_ids_reads_lists_tensors_and_map_style_datasets():
    data = [{"input_ids": [9, 3]}, {"input_ids": torch.tensor([[3, 1]]), "labels": [-100, 8]}, {"other": [50]}]
    assert active_token_ids(data).tolist() == [1, 3, 9]
    assert active_token_ids(data, keys=("input_ids", "labels")).tolist() == [1, 3, 8, 9]
    assert active_token_ids(iter(data)).tolist() == [1, 3, 9]
    assert active_token_ids(Wrapping()).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([{"input_ids": []}], "no token under the keys .input_ids."),
        ([{"input_ids": [4, -3]}], "negative token id -3"),
        ([[1, 2]], r"dataset has the list \[1, 2\] as example 0: expected mappings"),
        ([{"input_ids": [4]}, "text"], "dataset has 'text' as example 1"),
        ([{"input_ids": "text"}], "dataset has 'text' under 'input_ids' of example 0: expected token ids; tok"),
        ([{"input_ids": [1.5]}], r"dataset has the list \[1.5\] under 'input_ids'"),
        ({"input_ids": [[4]]}, "dataset is the dict .*: expected examples; put a single one into a list"),
        ("text", "dataset is 'text'"),
        (None, "dataset is None: expected examples, each a mapping"),
    ],
)
def test_datasets_without_token_ids_are_refused(dataset, message):
    with pytest.raises((InputError, TypeError), match=message):
        active_token_ids(dataset)


def test_keys_are_a_list_of_strings():
    with pytest.raises(TypeError, match="keys is 'labels': expected a list of strings"):
        active_token_ids([{"labels": [1]}], keys="labels")

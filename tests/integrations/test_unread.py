"""Tickets whose tokens the training data never hold: one warning that names them, at the caller's line."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from tiny_models import V, make
from tiny_trainer import arguments, dataset
from torch import nn

from kslottery_fast.integrations import unread
from kslottery_fast.integrations.trainer import TicketTrainer
from kslottery_fast.integrations.unread import UnreadRows, unread_rows
from kslottery_fast.rows.attach import attach_rows, get_rows


def stream() -> datasets.IterableDataset:
    def examples() -> Iterator[dict[str, list[int]]]:
        yield from dataset()

    return datasets.IterableDataset.from_generator(examples)


def built(folder: Path, model: nn.Module | None = None, *, data: object = None, **options: object) -> TicketTrainer:
    return TicketTrainer(
        model=make("llama") if model is None else model,
        args=arguments(folder, save_strategy="no"),
        train_dataset=dataset() if data is None else data,
        **options,
    )


def with_rows(ids: list[int]) -> nn.Module:
    return attach_rows(make("llama"), ids)


def found(caught: list[warnings.WarningMessage]) -> list[str]:
    assert {warning.filename for warning in caught} <= {__file__}  # the caller's line
    return [str(warning.message) for warning in caught if warning.category is RuntimeWarning]


def test_tickets_that_a_dataset_lacks_are_named_once_when_the_trainer_is_built(tmp_path):
    tickets = SimpleNamespace(token_ids=torch.tensor([9, 50, 55]), vocab_size=V, token_texts=("a", " b", "c"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built(tmp_path, tickets=tickets).train()
    assert found(caught) == [
        "2 of 3 tickets never occur in train_dataset, so their rows do not train: token ids 50 ' b', 55 'c'; leave "
        "them out, or add examples that contain them"
    ]


def test_texts_come_from_the_tokenizer_and_many_tickets_are_cut_short(tmp_path, tiny_llama, tiny_tokenizer):
    with pytest.warns(RuntimeWarning) as caught:
        built(tmp_path, tiny_llama(), tickets=range(70, 78), processing_class=tiny_tokenizer)
    first = ", ".join(f"{token} {tiny_tokenizer.decode([token])!r}" for token in range(70, 75))
    (message,) = found(caught.list)
    assert message.startswith("none of the 8 tickets occurs in train_dataset, ")
    assert f"token ids {first}, ...; leave" in message


def test_rows_attached_before_are_looked_at_too_and_tickets_none_is_not(tmp_path):
    model = attach_rows(make("llama"), [50])
    with pytest.warns(
        RuntimeWarning,
        match="^the only ticket never occurs in train_dataset, so its row does not train: token id 50; leave it",
    ):
        built(tmp_path, model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built(tmp_path, model, tickets="none")
        built(tmp_path, attach_rows(make("llama"), [9, 12])).train()
        built(tmp_path, tickets="active")
    assert found(caught) == []


def test_a_stream_is_judged_by_the_gradients_at_the_end_of_training(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = built(tmp_path, data=stream(), tickets=[9, 50, 12])
        assert found(caught) == []
        trainer.train()
        trainer.train()
    (message,) = found(caught)
    assert message.startswith(
        "1 of 3 tickets had no gradient in 6 steps, so its row did not train: token id 50; no example contains it, "
        "or only at its end, where nothing is predicted from it; leave it out"
    )
    moved = get_rows(trainer.model).rows != get_rows(with_rows([9, 50, 12])).rows
    assert moved.any(dim=1).tolist() == [True, False, True]


def test_a_stream_without_any_ticket_is_told_after_the_first_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(unread, "FIRST_STEPS", 2)
    with pytest.warns(RuntimeWarning) as caught:
        built(tmp_path, data=stream(), tickets=[50, 55]).train()
    (message,) = found(caught.list)
    assert message.startswith(
        "none of the 2 tickets had a gradient in 2 steps, so their rows did not train: token ids 50, 55; "
    )


def test_a_head_that_follows_the_rows_trains_all_of_them(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = attach_rows(make("llama"), [9, 50], output="tied")
        start = get_rows(model).rows.detach().clone()
        built(tmp_path, model).train()
    assert found(caught) == []
    assert (get_rows(model).rows != start).any(dim=1).all()


class Drawing(torch.utils.data.Dataset):
    """Examples that cost random numbers."""

    def __init__(self, data: list[dict[str, list[int]]]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        torch.rand(1), np.random.random(), random.random()  # noqa: NPY002 - as old datasets draw
        return self.data[index]


def random_states() -> tuple[object, ...]:
    numpy = np.random.get_state()[1].tolist(), np.random.get_state()[2]  # noqa: NPY002
    return torch.random.get_rng_state().tolist(), numpy, random.getstate()


def test_a_look_leaves_the_random_numbers_as_they_were_and_says_nothing_where_it_cannot_tell(monkeypatch):
    model, data = with_rows([9, 50]), Drawing(dataset())
    before = random_states()
    assert unread_rows(data, model) == [50]
    assert random_states() == before
    _ = data[0]
    assert all(now != then for now, then in zip(random_states(), before, strict=True))
    assert unread_rows([{"text": "a"}], model) is None
    assert unread_rows(None, model) is None
    assert unread_rows(stream(), model) is None
    monkeypatch.setattr(unread, "LOOK_EXAMPLES", 23)
    assert unread_rows(data, model) is None
    monkeypatch.setattr(unread, "LOOK_EXAMPLES", 24)
    monkeypatch.setattr(unread, "LOOK_SECONDS", -1.0)
    assert unread_rows(data, model) is None


def test_a_dataset_that_workers_read_is_not_read_by_their_parent(tmp_path):
    class Unreadable(Drawing):
        def __getitem__(self, index: int) -> dict[str, list[int]]:
            raise AssertionError("read by the parent")

    args = arguments(tmp_path, dataloader_num_workers=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = TicketTrainer(model=make("llama"), args=args, train_dataset=Unreadable(dataset()), tickets=[50])
    assert found(caught) == []
    assert any(isinstance(callback, UnreadRows) for callback in trainer.callback_handler.callbacks)


@pytest.mark.parametrize("name", ["t5", "m2m100"])
def test_what_a_decoder_reads_counts_as_read(name):
    model = make(name)
    start = model.config.decoder_start_token_id
    attach_rows(model, sorted({start, 9, 50}))
    data = [{"input_ids": [9], "labels": [12]}]
    assert unread_rows(data, model) == [50]
    assert unread_rows([{"input_ids": [9], "labels": [50]}], model) == []

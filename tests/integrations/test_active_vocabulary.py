"""tickets="active": the rows that a dataset reads train, and a batch that reads another row is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator

import datasets
import pytest
import torch
import trl
from tiny_models import V, make
from tiny_trainer import arguments, dataset, losses, train
from torch import nn
from transformers import Trainer

from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.active_vocabulary import active_vocabulary, check_batch
from kslottery_fast.integrations.trainer import TicketTrainer, TicketTrainerMixin
from kslottery_fast.rows.attach import attach_rows, get_rows, has_rows, merge_rows
from kslottery_fast.rows.tables import embedding_table
from kslottery_fast.rows.token_ids import active_token_ids


def test_embed_tuning_on_the_active_vocabulary_equals_torch_adamw_on_the_full_table(tmp_path):
    ours, dense = make("llama", tied=False), make("llama", tied=False)
    start = embedding_table(dense).detach().clone()
    trainer = train(ours, tmp_path / "rows", tickets="active", max_steps=20, max_grad_norm=0.0)
    active = active_token_ids(dataset())
    assert get_rows(ours).token_ids.tolist() == active.tolist()
    dense.requires_grad_(False)
    embedding_table(dense).requires_grad_(True)
    args = arguments(tmp_path / "dense", max_steps=20, max_grad_norm=0.0, optim="adamw_torch", save_strategy="no")
    plain = Trainer(model=dense, args=args, train_dataset=dataset())
    plain.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-6)
    merged, full = embedding_table(merge_rows(ours)), embedding_table(dense)
    inactive = torch.ones(V, dtype=torch.bool)
    inactive[active] = False
    assert inactive.any()
    assert torch.equal(merged[inactive], start[inactive])
    assert torch.equal(full[inactive], start[inactive])
    # Gradients agree to rounding. Adam divides them by their own size, so a coordinate whose gradient is
    # itself rounding noise can move differently by a small part of a step; steps are 1e-2, moves up to 0.1.
    torch.testing.assert_close(merged, full, rtol=0, atol=1e-4)
    assert (full - start).abs().max() > 0.05


def test_a_batch_with_a_token_outside_the_active_vocabulary_is_refused(tmp_path):
    model = make("llama")
    trainer = TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), tickets="active")
    trainer.train_dataset = dataset(low=50, high=55)
    with pytest.raises(InputError, match=r"input_ids holds token 5\d, which is not in the active vocabulary"):
        trainer.train()


def test_padding_is_no_token_outside_the_active_vocabulary(tmp_path):
    model = make("llama")
    TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), tickets="active")
    batch = {"input_ids": torch.tensor([[8, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    check_batch(model, batch)
    batch["attention_mask"][0, 2] = 1
    with pytest.raises(InputError, match="holds token 0"):
        check_batch(model, batch)


@pytest.mark.parametrize("name", ["t5", "m2m100"])
def test_an_encoder_decoder_model_trains_on_its_active_vocabulary(tmp_path, name):
    model = make(name)
    trainer = train(model, tmp_path, tickets="active", max_steps=3)
    start = model.config.decoder_start_token_id
    assert start in get_rows(model).token_ids
    assert all(math.isfinite(loss) for loss in losses(trainer))


@pytest.mark.parametrize("name", ["t5", "m2m100"])
def test_labels_outside_the_active_vocabulary_are_refused_where_the_decoder_reads_them(tmp_path, name):
    data = dataset(high=20)
    trainer = TicketTrainer(model=make(name), args=arguments(tmp_path), train_dataset=data, tickets="active")
    # The default collator makes no decoder_input_ids: the model shifts the labels.
    trainer.train_dataset = [{**example, "labels": [-100] + [55] * 8} for example in data]
    with pytest.raises(
        InputError, match=r"labels holds token 55, .*: leave the example out, or build the Trainer with"
    ):
        trainer.train()
    trainer.train_dataset = [{**example, "decoder_input_ids": [0] + [55] * 8} for example in data]
    with pytest.raises(InputError, match="decoder_input_ids holds token 55"):
        trainer.train()


@pytest.mark.parametrize("name", ["t5", "m2m100"])
def test_every_row_that_a_decoder_reads_is_in_the_active_vocabulary(tmp_path, name):
    model = make(name)
    trainer = TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(), tickets="active")
    read = []
    for embedding in {module for module in model.modules() if type(module) is type(get_rows(model))}:
        embedding.register_forward_pre_hook(lambda _module, ids: read.append(ids[0].unique()))
    for batch in trainer.get_train_dataloader():
        check_batch(model, batch)
        model(**batch)
    read = torch.cat(read).unique()
    assert model.config.decoder_start_token_id in read
    assert torch.isin(read, get_rows(model).token_ids).all()


def test_labels_of_a_decoder_only_model_are_targets_and_may_be_any_token(tmp_path):
    model = make("llama")
    TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=dataset(high=20), tickets="active")
    check_batch(model, {"input_ids": torch.tensor([[8, 9]]), "labels": torch.tensor([[55, 55]])})


def test_active_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="tickets='active' needs train_dataset"):
        TicketTrainer(model=make("llama"), args=arguments(tmp_path), tickets="active")


def test_raw_text_is_refused_before_the_trainer_tokenizes_it(tmp_path, tiny_llama, tiny_tokenizer):
    class TicketSFTTrainer(TicketTrainerMixin, trl.SFTTrainer):
        pass

    model, data = tiny_llama(), datasets.Dataset.from_dict({"text": ["Save the file"], "id": [1]})
    args = trl.SFTConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False)
    options = {"model": model, "args": args, "processing_class": tiny_tokenizer, "tickets": "active"}
    with pytest.raises(InputError, match="reads input_ids, and train_dataset has text, id: tokenize it before"):
        TicketSFTTrainer(train_dataset=data, **options)
    assert not has_rows(model)
    tokenized = data.map(lambda row: tiny_tokenizer(row["text"]))
    trainer = TicketSFTTrainer(train_dataset=tokenized, **options)
    assert get_rows(trainer.model).token_ids.tolist() == sorted(set(tiny_tokenizer("Save the file")["input_ids"]))
    with pytest.raises(InputError, match="train_dataset has no example"):
        TicketTrainer(model=make("llama"), args=arguments(tmp_path), train_dataset=[], tickets="active")


def test_a_map_style_dataset_whose_index_wraps_is_read_once(tmp_path):
    class Wrapping(torch.utils.data.Dataset):
        reads = 0

        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            self.reads += 1
            assert self.reads < 100, "the end was missed"
            return dataset()[index % 24]

    model = make("llama")
    TicketTrainer(model=model, args=arguments(tmp_path), train_dataset=Wrapping(), tickets="active")
    assert get_rows(model).token_ids.tolist() == active_token_ids(dataset()).tolist()


@pytest.mark.parametrize("wrong", [None, "a", 3, 0.5, ["a"], nn.Embedding(3, 2)])
def test_what_is_no_dataset_and_no_model_is_refused(wrong):
    with pytest.raises(TypeError, match=r"^dataset is "):
        active_vocabulary(wrong, nn.Embedding(3, 2))
    if not isinstance(wrong, nn.Module):
        with pytest.raises(TypeError, match=r"^model is "):
            active_vocabulary(dataset(), wrong)
    with pytest.raises(TypeError, match=r"^inputs is "):
        check_batch(attach_rows(make("llama"), [3]), wrong)


def test_a_dataset_that_streams_is_refused_and_not_consumed(tmp_path):
    taken = []

    def stream() -> Iterator[dict[str, list[int]]]:
        for example in dataset():
            taken.append(example)
            yield example

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, list[int]]]:
            return stream()

    for data in (stream(), Stream(), datasets.IterableDataset.from_generator(stream)):
        with pytest.raises(InputError, match="this one streams: load it whole, or pass the token ids"):
            TicketTrainer(model=make("llama"), args=arguments(tmp_path), train_dataset=data, tickets="active")
    assert taken == []

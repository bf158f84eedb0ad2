"""Options of the Trainer that users take for granted, with rows: each changes the training as it does without them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from tiny_models import make
from tiny_trainer import TOKENS, arguments, dataset, losses, train
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import TensorBoardCallback

from kslottery_fast import InputError, attach_rows
from kslottery_fast.integrations.monitor import TicketMonitor
from kslottery_fast.integrations.seq2seq_trainer import TicketSeq2SeqTrainer
from kslottery_fast.integrations.trainer import TicketTrainer
from kslottery_fast.rows.attach import get_rows, output_role
from kslottery_fast.rows.new_token_marks import mark_new_tokens


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_loss(tmp_path, reentrant):
    plain, saved = make("llama"), make("llama")
    want = losses(train(plain, tmp_path / "a", max_steps=3))
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert losses(train(saved, tmp_path / "b", max_steps=3, **options)) == want
    assert saved.is_gradient_checkpointing
    assert torch.equal(get_rows(saved).rows, get_rows(plain).rows)


def test_a_compiled_training_is_that_of_the_plain_one_and_resumes(tmp_path):
    plain, compiled, resumed = make("llama"), make("llama"), make("llama")
    options = {"torch_compile": True, "torch_compile_backend": "eager", "output": "tied"}
    want = losses(train(plain, tmp_path / "a", output="tied"))
    assert losses(train(compiled, tmp_path / "b", **options)) == pytest.approx(want, rel=1e-6)
    torch.testing.assert_close(get_rows(compiled).rows, get_rows(plain).rows)
    for checkpoint in ("a/checkpoint-3", "b/checkpoint-3"):  # of a training that was not compiled, and of one that was
        model = make("llama")
        train(model, tmp_path / "c", resume=tmp_path / checkpoint, **options)
        torch.testing.assert_close(get_rows(model).rows, get_rows(plain).rows)
    train(resumed, tmp_path / "d", resume=tmp_path / "b/checkpoint-3", output="tied")
    torch.testing.assert_close(get_rows(resumed).rows, get_rows(plain).rows)


class Writer:
    """What TensorBoardCallback writes to."""

    def __init__(self) -> None:
        self.scalars, self.texts = list[tuple[str, float, int]](), dict[str, str]()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_text(self, name: str, text: str, *_: int) -> None:
        self.texts[name] = text

    def flush(self) -> None:
        """Nothing is kept back."""

    close = flush


class WithWriter(TensorBoardCallback):
    """The callback of transformers, without the package tensorboard."""

    def __init__(self, writer: Writer) -> None:
        self._SummaryWriter, self.tb_writer, self.logging_dir = None, writer, "unused"


def test_tensorboard_gets_the_numbers_of_the_training_and_of_the_monitor(tmp_path):
    writer = Writer()
    trainer = TicketTrainer(
        model=make("llama"),
        args=arguments(tmp_path, max_steps=4, save_strategy="no"),
        train_dataset=dataset(),
        tickets=TOKENS,
        nonfinite="skip",
        callbacks=[TicketMonitor(every=2), WithWriter(writer)],
    )
    trainer.train()
    assert [step for name, _, step in writer.scalars if name == "train/loss"] == [1, 2, 3, 4]
    assert [step for name, _, step in writer.scalars if name == "train/tickets"] == [2, 4]
    assert [step for name, _, step in writer.scalars if name == "train/ticket_overlap"] == [4]
    assert {value for name, value, _ in writer.scalars if name == "train/skipped_steps"} == {0}
    assert '"model_type": "llama"' in writer.texts["model_config"]


def test_report_to_tensorboard_writes_a_file_of_events(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    trainer = TicketTrainer(
        model=make("llama"),
        args=arguments(tmp_path, max_steps=2, save_strategy="no", report_to=["tensorboard"]),
        train_dataset=dataset(),
        tickets=TOKENS,
        callbacks=[TicketMonitor(every=1)],
    )
    trainer.train()
    (path,) = tmp_path.rglob("events.out.tfevents.*")
    found, data = {}, path.read_bytes()
    while data:  # length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [found["train/loss", step] for step in (1, 2)] == pytest.approx(losses, abs=1e-4)
    assert {step for name, step in found if name == "train/tickets"} == {1, 2}


@pytest.mark.parametrize("name", ["t5", "m2m100"])
def test_a_seq2seq_trainer_generates_with_the_rows_and_loads_the_best_model(tmp_path, name):
    model = make(name)
    model.generation_config.max_new_tokens = 4
    seen = list[np.ndarray]()

    def metrics(prediction) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"score": -len(seen)}

    args = Seq2SeqTrainingArguments(
        str(tmp_path),
        max_steps=2,
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        predict_with_generate=True,
        per_device_eval_batch_size=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=1.0,
    )
    data = dataset()
    trainer = TicketSeq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=data[:6],
        tickets=TOKENS,
        output="tied",
        compute_metrics=metrics,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    best = seen[0]
    trainer.evaluate()
    np.testing.assert_array_equal(seen[-1], best)  # the rows of the first step are back, and generate reads them
    inputs = {key: torch.tensor([each[key] for each in data[:6]]) for key in ("input_ids", "attention_mask")}
    again = model.generate(**inputs)
    np.testing.assert_array_equal(best[:, : again.shape[1]], again.numpy())


def test_the_word_for_added_tokens_trains_their_rows(tmp_path):
    with pytest.raises(InputError, match="tickets is 'added', and no token was added to this model"):
        train(make("llama"), tmp_path, tickets="added")
    model = make("llama")
    mark_new_tokens([model.get_input_embeddings()], [40, 7])
    trainer = train(model, tmp_path, tickets="added", max_steps=1)
    assert get_rows(model).token_ids.tolist() == [7, 40]
    assert output_role(trainer.model) == "tied"
    train(model, tmp_path, tickets="added", max_steps=1)  # the same rows are attached already
    other = make("llama")
    mark_new_tokens([other.get_input_embeddings()], [40, 7])
    with pytest.raises(InputError, match="the rows attached to the model are not those of tickets"):
        train(attach_rows(other, [7]), tmp_path, tickets="added")

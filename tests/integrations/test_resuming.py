"""A training that was interrupted goes on from its last checkpoint and ends with the bits of one that was not."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from benchmarks.stage1_optimizers import Method
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation.encoding import Example, encode
from kslottery_fast.integrations import resuming
from kslottery_fast.integrations.peft_adapters import LORA, PREFIX
from kslottery_fast.integrations.resuming import Checkpoints, seconds_spent
from kslottery_fast.lab.experiment.training import Recipe, train_parameters, train_rows
from kslottery_fast.tickets.evidence import Witness

STEPS = 11
# Three updates make an epoch, the last of one micro-batch: checkpoints lie at its beginning, middle and end.
RECIPE = Recipe(pad_token_id=2, steps=STEPS, batch_size=4, micro_batch_size=2, learning_rate=1e-2, seed=0)


@pytest.fixture(autouse=True)
def every_other_step(monkeypatch):
    """Nobody waits for 25 steps and 60 s here."""
    monkeypatch.setattr(resuming, "STEPS", 2)
    monkeypatch.setattr(resuming, "SECONDS", 0.0)


def interrupt():
    """As Ctrl-C does; a signal would be ignored where the tests run in the background of a shell."""
    raise KeyboardInterrupt


@pytest.fixture
def train(tiny_llama, tiny_tokenizer):
    """``train(folder, stop)``: rows, losses and evidence, interrupted at step ``stop``; ``steps`` are those it saw."""
    texts = ["Save", "Save the file", "Delete all", "The house is big", "big", "file", "all", "the house", "Delete"]
    features = [encode(tiny_tokenizer, Example(f"English: {text}\nSpanish:", f" {text[::-1]}")) for text in texts]
    ids = torch.tensor(sorted({i for feature in features for i in feature["input_ids"]} - {2}))

    def run(folder, stop=None, *, recipe=RECIPE, how=interrupt):
        model = tiny_llama(tied=True)
        witness = Witness(model.get_input_embeddings().weight.detach().clone(), recipe.steps)
        run.steps = []

        def progress(done, total, note):
            run.steps.append(done)
            if stop is not None and done >= stop:
                how()

        trained = train_rows(model, ids, features, recipe, checkpoints=folder, progress=progress, witness=witness)
        frequency = torch.zeros(320, dtype=torch.int64)
        return trained, witness.evidence(trained.token_ids, trained.rows, frequency, recipe.steps)

    run.features = features
    return run


def assert_same(first, second):
    (rows, evidence), (other_rows, other_evidence) = first, second
    assert torch.equal(rows.rows, other_rows.rows)
    assert rows.losses == other_rows.losses
    assert torch.equal(evidence.gradient, other_evidence.gradient)
    assert [step for step, _ in evidence.trajectory] == [step for step, _ in other_evidence.trajectory]
    for (_, counts), (_, others) in zip(evidence.trajectory, other_evidence.trajectory, strict=True):
        assert torch.equal(counts, others)


def test_interrupted_again_and_again_it_ends_with_the_same_rows_losses_and_evidence(train, tmp_path):
    whole = train(None)
    assert train.steps == list(range(1, STEPS + 1))
    begins = []
    for stop in (1, 4, 5, 8, 10):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "embed", stop)
        begins.append(train.steps[0])
    assert begins == [1, 1, 3, 5, 7]
    assert_same(train(tmp_path / "embed"), whole)
    assert train.steps == [9, 10, 11]


def test_killed_it_goes_on_with_the_same_bits(train, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has one
    try:
        whole = train(None)
        for stop in (4, 9):
            pid = os.fork()
            if pid == 0:
                train(tmp_path / "embed", stop, how=lambda: os.kill(os.getpid(), signal.SIGKILL))
            assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        assert_same(train(tmp_path / "embed"), whole)
        assert train.steps == [9, 10, 11]
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def interrupted(train, tmp_path):
    """The folder of a training that has a checkpoint of step 4."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "embed", 5)
    assert [path.name for path in (tmp_path / "embed").iterdir()] == ["checkpoint-4"]
    return tmp_path / "embed"


def first_step(train, folder, **options):
    """The step that a training in ``folder`` begins with; it is then interrupted."""
    with pytest.raises(KeyboardInterrupt):
        train(folder, 0, **options)
    return train.steps[0]


def test_a_checkpoint_of_another_training_is_passed_over(train, interrupted):
    passed_over = "checkpoint-4: this checkpoint is passed over, since it was made with other"
    for number, change in enumerate([{"seed": 1}, {"steps": 12}]):
        copied = shutil.copytree(interrupted, interrupted.parent / str(number))
        with pytest.warns(UserWarning, match=passed_over):
            assert first_step(train, copied, recipe=replace(RECIPE, **change)) == 1
    other = replace(RECIPE, learning_rate=1e-3)
    with pytest.warns(UserWarning, match=passed_over):
        found = train(interrupted, recipe=other)
    assert_same(found, train(None, recipe=other))


def test_a_training_with_another_optimizer_goes_on_with_its_state_and_from_no_checkpoint_of_adam(train, interrupted):
    other = replace(RECIPE, optimizer=Method("row", 1e-8, 0.999))
    with pytest.warns(UserWarning, match="was made with other settings"):
        assert first_step(train, interrupted, recipe=other) == 1
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, 6, recipe=other)
    resumed = train(interrupted, recipe=other)
    assert train.steps[0] == 5
    assert_same(resumed, train(None, recipe=other))


def test_a_checkpoint_of_another_number_of_threads_is_passed_over(train, interrupted):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match="another number of threads"):
            assert first_step(train, interrupted) == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["complete.json", "witness.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", [b"", b"{}"])
def test_a_damaged_checkpoint_is_passed_over_with_a_word(train, interrupted, name, damage):
    (interrupted / "checkpoint-4" / name).write_bytes(damage)
    with pytest.warns(UserWarning, match=r"checkpoint-4: this checkpoint is passed over, since it is damaged"):
        assert first_step(train, interrupted) == 1


def test_a_checkpoint_that_was_not_finished_is_passed_over(train, interrupted):
    half = interrupted / "checkpoint-6"
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    train(interrupted)
    assert train.steps[0] == 5
    (interrupted / "checkpoint-10" / "complete.json").unlink()
    assert first_step(train, interrupted) == 1


def test_a_checkpoint_that_cannot_be_written_is_said_in_words(train, interrupted, monkeypatch):
    def full(*_args, **_options):
        raise RuntimeError("[enforce fail at inline_container.cc:672] PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"checkpoint of the training cannot be written.*free some space.*to resume"):
        train(interrupted)
    monkeypatch.undo()
    assert first_step(train, interrupted) == 5


def test_the_time_of_all_attempts_is_kept(train, interrupted):
    record = interrupted / "checkpoint-4" / "complete.json"
    found = json.loads(record.read_text())
    assert 0 < found["seconds"] < 60
    record.write_text(json.dumps({**found, "seconds": 1000.0}))
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, 7)
    assert json.loads((interrupted / "checkpoint-6" / "complete.json").read_text())["seconds"] > 1000
    assert seconds_spent(interrupted) == 1000
    assert seconds_spent(interrupted / "nothing") == 0
    with pytest.warns(UserWarning, match="passed over"):
        assert first_step(train, interrupted, recipe=replace(RECIPE, seed=1)) == 1
    assert seconds_spent(interrupted) == 0


def test_a_checkpoint_is_due_after_25_steps_or_a_minute_whichever_takes_longer(monkeypatch, tmp_path):
    monkeypatch.undo()
    assert (resuming.STEPS, resuming.SECONDS) == (25, 60.0)
    now = 0.0
    saver = Checkpoints(tmp_path, "", clock=lambda: now)
    state = type("State", (), {"max_steps": 500})()
    control = type("Control", (), {"should_save": False})()

    def due(step: int) -> bool:
        control.should_save, state.global_step = False, step
        saver.on_step_end(None, state, control)
        return control.should_save

    now = 59.0
    assert not due(40)
    now = 61.0
    assert not due(24)
    assert due(25)
    assert not due(500)  # the stage is about to be finished


@pytest.mark.parametrize("kind", [LORA, PREFIX])
def test_an_adapter_goes_on_too(train, tiny_llama, tmp_path, kind):
    def run(folder, stop=None):
        model, steps = tiny_llama(tied=True), []

        def progress(done, total, note):
            steps.append(done)
            if done == stop:
                raise KeyboardInterrupt

        saver = Checkpoints(folder, "lora") if folder else None
        torch.manual_seed(0)
        with kind.attached(model, 512, [3, 14, 15]) as (adapter, _):
            losses = train_parameters(adapter, train.features, RECIPE, saver=saver, progress=progress)
            trained = [value.detach().clone() for value in adapter.parameters() if value.requires_grad]
        return losses, trained, steps

    losses, trained, _ = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 6)
    again, others, steps = run(tmp_path)
    assert steps[0] == 5
    assert again == losses
    assert all(map(torch.equal, others, trained))
    assert not list(tmp_path.glob("*/model.safetensors"))  # what trains, not the model

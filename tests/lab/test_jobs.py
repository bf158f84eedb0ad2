"""Jobs: in order, each once, each with its own peak of memory."""

import io
from importlib import metadata

import pytest
import torch
from rich.console import Console

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.memory import reset_peak_memory
from kslottery_fast.lab.experiment import environment
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.jobs import Job, work_through
from kslottery_fast.lab.experiment.run_folder import RunFolder, open_run_folder


def jobs(done: list[str], *names: str) -> list[Job]:
    def work(name: str):
        def write(folder, progress):
            done.append(name)
            if name == "bad":
                raise InputError("bad")
            (folder / "x").write_text(name)
            progress(1, 1)

        return write

    return [Job(name, f"Title of {name}", work(name), lambda: done.append("after")) for name in names]


def test_what_a_job_found_is_shown_when_it_is_done_and_once_at_the_next_start_that_has_work(tmp_path):
    shown: list[str] = []

    def showing(*names: str) -> list[Job]:
        return [Job(name, name, lambda *_: None, show=lambda name=name: shown.append(name)) for name in names]

    with open_run_folder(tmp_path / "run", {}, {}) as folder:
        for names in (["a", "b"], ["a", "b"], ["a", "b", "c"]):
            work_through(showing(*names), folder, RunConsole(), "")
    assert shown == ["a", "b", "a", "b", "c"]


def test_jobs_run_in_order_and_never_again(tmp_path, capsys):
    done: list[str] = []
    with open_run_folder(tmp_path / "run", {}, {}) as folder:
        work_through(jobs(done, "a", "b"), folder, RunConsole(), "command")
        assert done == ["a", "after", "b", "after"]
        work_through(jobs(done, "a", "b", "c"), folder, RunConsole(), "command")
        # What follows a finished stage is done again: a kill may have come between the two.
        assert done == ["a", "after", "b", "after", "after", "after", "c", "after"]
        assert folder.record("a")["environment"]["command"] == "command"
    assert "[3/3] Title of c" in capsys.readouterr().err


def test_the_estimate_learns_from_all_attempts_of_a_stage_and_nothing_from_one_without_work(tmp_path, monkeypatch):
    recorded = {"resumed": 1000.0, "idle": 0.0, "last": 1.0}
    monkeypatch.setattr(RunFolder, "seconds", lambda _, stage: recorded[stage])
    file = io.StringIO()
    console = RunConsole(Console(file=file, width=200), heartbeat=0.0)

    def job(name: str) -> Job:
        return Job(name, name, lambda _, progress: progress(1, 2), idle=lambda: name == "idle")

    with open_run_folder(tmp_path / "run", {}, {}) as folder:
        work_through([job("resumed"), job("idle")], folder, console, "")
        work_through([job("resumed"), job("idle"), job("last")], folder, console, "")
    said = [line.partition(", ")[2] for line in file.getvalue().splitlines() if "1 of 2" in line]
    assert said == ["", "about 9 min left", "about 9 min left"]


@pytest.fixture
def started(tmp_path):
    """A folder with stage a, made with as many threads as there are now."""
    with open_run_folder(tmp_path / "run", {}, {}) as folder:
        work_through(jobs([], "a"), folder, RunConsole(), "")
        yield folder


@pytest.fixture
def another_count():
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    yield threads
    torch.set_num_threads(threads)


def test_going_on_with_another_number_of_threads_is_said_once(started, another_count, capsys):
    work_through(jobs([], "a", "b", "c"), started, RunConsole(), "")
    error = capsys.readouterr().err
    there = f"{another_count} thread{'' if another_count == 1 else 's'}"
    assert (
        error.count(f"note: the finished stages were made with {there}, and this call has {another_count + 1}. ") == 1
    )
    assert f"Set OMP_NUM_THREADS={another_count} to get the same bits" in error


def test_nothing_is_said_of_threads_where_they_are_the_same_or_nothing_is_left(started, capsys):
    work_through(jobs([], "a", "b"), started, RunConsole(), "")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        work_through(jobs([], "a", "b"), started, RunConsole(), "")
    finally:
        torch.set_num_threads(threads)
    assert "note" not in capsys.readouterr().err


def test_the_record_of_a_stage_names_peft_where_it_is_installed(started, monkeypatch):
    assert started.record("a")["environment"]["packages"]["peft"] == metadata.version("peft")
    monkeypatch.setattr(environment.metadata, "version", without_peft)
    assert "peft" not in environment.snapshot("")["packages"]


def without_peft(name: str) -> str:
    if name == "peft":
        raise metadata.PackageNotFoundError
    return "1"


def test_a_job_that_fails_leaves_the_finished_ones_and_no_trace_of_itself(tmp_path):
    done: list[str] = []
    with open_run_folder(tmp_path / "run", {}, {}) as folder:
        with pytest.raises(InputError, match="bad"):
            work_through(jobs(done, "a", "bad", "c"), folder, RunConsole(), "")
        assert done == ["a", "after", "bad"]
        assert folder.finished("a")
        assert [path.name for path in (tmp_path / "run" / "stages").iterdir()] == ["a"]


def test_the_peak_of_a_stage_does_not_hold_that_of_the_one_before(tmp_path):
    def large(folder, progress):
        assert len(bytearray(300 << 20)) == 300 << 20

    small = Job("small", "small", lambda folder, progress: None)
    with open_run_folder(tmp_path / "run", {}, {}) as folder:
        work_through([Job("large", "large", large), small], folder, RunConsole(), "")
        records = [folder.record(stage)["environment"] for stage in ("large", "small")]
    if not reset_peak_memory():
        assert {record["peak_memory_of"] for record in records} == {"process"}
        return
    assert {record["peak_memory_of"] for record in records} == {"stage"}
    assert records[0]["peak_memory_mb"] - records[1]["peak_memory_mb"] > 250


def test_views_of_a_folder_share_it_and_see_their_own_stages(tmp_path):
    with open_run_folder(tmp_path / "run", {}, {}) as folder:
        view = folder.view("es.").view("0.")
        with view.write_stage("embed"):
            pass
        assert view.finished("embed")
        assert folder.finished("es.0.embed")
        assert not folder.finished("embed")
        assert not folder.view("de.").finished("0.embed")

"""Jobs: in order, each once, each with its own peak of memory."""

import pytest

from kslottery_fast.errors import InputError
from kslottery_fast.lab.console import RunConsole
from kslottery_fast.lab.jobs import Job, work_through
from kslottery_fast.lab.memory import reset_peak_memory
from kslottery_fast.lab.run_folder import open_run_folder


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


def test_jobs_run_in_order_and_never_again(tmp_path, capsys):
    done: list[str] = []
    with open_run_folder(tmp_path / "run", {}) as folder:
        work_through(jobs(done, "a", "b"), folder, RunConsole(), "command")
        assert done == ["a", "after", "b", "after"]
        work_through(jobs(done, "a", "b", "c"), folder, RunConsole(), "command")
        assert done == ["a", "after", "b", "after", "c", "after"]
        assert folder.record("a")["environment"]["command"] == "command"
    assert "[3/3] Title of c" in capsys.readouterr().err


def test_a_job_that_fails_leaves_the_finished_ones_and_no_trace_of_itself(tmp_path):
    done: list[str] = []
    with open_run_folder(tmp_path / "run", {}) as folder:
        with pytest.raises(InputError, match="bad"):
            work_through(jobs(done, "a", "bad", "c"), folder, RunConsole(), "")
        assert done == ["a", "after", "bad"]
        assert folder.finished("a")
        assert [path.name for path in (tmp_path / "run" / "stages").iterdir()] == ["a"]


def test_the_peak_of_a_stage_does_not_hold_that_of_the_one_before(tmp_path):
    def large(folder, progress):
        assert len(bytearray(300 << 20)) == 300 << 20

    small = Job("small", "small", lambda folder, progress: None)
    with open_run_folder(tmp_path / "run", {}) as folder:
        work_through([Job("large", "large", large), small], folder, RunConsole(), "")
        records = [folder.record(stage)["environment"] for stage in ("large", "small")]
    if not reset_peak_memory():
        assert {record["peak_memory_of"] for record in records} == {"process"}
        return
    assert {record["peak_memory_of"] for record in records} == {"stage"}
    assert records[0]["peak_memory_mb"] - records[1]["peak_memory_mb"] > 250


def test_views_of_a_folder_share_it_and_see_their_own_stages(tmp_path):
    with open_run_folder(tmp_path / "run", {}) as folder:
        view = folder.view("es.").view("0.")
        with view.write_stage("embed"):
            pass
        assert view.finished("embed")
        assert folder.finished("es.0.embed")
        assert not folder.finished("embed")
        assert not folder.view("de.").finished("0.embed")


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with open_run_folder(tmp_path / "run", {}) as folder, folder.write_stage("a"):
        pass
    with (
        pytest.raises(InputError, match="is not of the format other/1; give another --output"),
        open_run_folder(tmp_path / "run", {}, kind="other/1"),
    ):
        pass

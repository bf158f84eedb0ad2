"""Claims: one process makes a stage, a dead one loses it, and one that was only silent notices that it did."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment import claims as module
from kslottery_fast.lab.experiment.claims import ClaimLostError, Claims
from kslottery_fast.lab.experiment.jobs import Job, make_stage, take_turns
from kslottery_fast.lab.experiment.run_folder import open_run_folder


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def write_claim(folder, stage, *, age=0.0, **owner):
    """A claim as another process would have left it."""
    path = folder / "claims" / f"{stage}.1"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": "another", "pid": 1, "born": "1", **owner}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_stage_is_held_once_until_it_is_released_and_then_no_claim_is_left(tmp_path):
    first, second = (Claims(tmp_path / "claims") for _ in range(2))
    with first.holding("es.0.embed") as mine:
        assert mine is not None
        assert second.held("es.0.embed")
        with second.holding("es.0.embed") as none, second.holding("es.0") as other:
            assert none is None
            assert other is not None
        assert files(tmp_path / "claims") == ["es.0.embed.1"]
    assert not second.any_held()
    assert not (tmp_path / "claims").exists()


def test_of_many_processes_one_gets_the_claim(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from kslottery_fast.lab.experiment.claims import Claims
sys.stdin.readline()
with Claims(Path({str(tmp_path / "claims")!r})).holding("embed") as claim:
    print(int(claim is not None), flush=True)
    sys.stdin.readline()
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.stdout.readline() for process in started) == ["0\n", "0\n", "0\n", "1\n"]
    for process in started:
        process.communicate("done\n")
    assert not (tmp_path / "claims").exists()


def test_the_claim_of_a_process_that_was_killed_here_is_dead_at_once_and_the_next_has_a_larger_number(tmp_path):
    claims = Claims(tmp_path / "claims")
    pid = os.fork()
    if pid == 0:
        with claims.holding("embed"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it is dead, and its parent has not taken note of it
    assert not claims.held("embed")
    os.waitpid(pid, 0)
    with claims.holding("embed") as mine:
        assert mine is not None
        assert files(claims.folder) == ["embed.1", "embed.2"]
    assert files(claims.folder) == []


def test_a_later_process_with_the_same_pid_does_not_keep_a_claim_alive(tmp_path):
    write_claim(tmp_path, "embed", machine=module._machine(), pid=os.getpid(), born="1")
    assert not Claims(tmp_path / "claims").held("embed")
    write_claim(tmp_path, "embed", machine=module._machine(), pid=os.getpid(), born=module._born(os.getpid()))
    assert Claims(tmp_path / "claims").held("embed")


@pytest.mark.parametrize("owner", ["another machine", "nobody yet"])
def test_a_claim_that_cannot_be_asked_is_dead_after_a_silence(tmp_path, owner):
    claims = Claims(tmp_path / "claims", silence=60)
    for age, held in ((0, True), (50, True), (70, False)):
        path = write_claim(tmp_path, "embed", age=age)
        if owner == "nobody yet":
            path.write_text("")
            os.utime(path, (time.time() - age,) * 2)
        assert claims.held("embed") == held
    assert files(claims.folder) == ["embed.1"]
    claims.tidy()
    assert not claims.folder.exists()


def test_a_claim_is_touched_while_it_is_held(tmp_path):
    claims = Claims(tmp_path / "claims", beat=0.01)
    with claims.holding("embed") as mine:
        os.utime(mine.path, (0, 0))
        wait_until(lambda: mine.path.stat().st_mtime > 0)
        mine.check()


@pytest.mark.parametrize("how", ["taken over", "removed"])
def test_a_process_that_was_silent_for_too_long_notices_that_it_lost_the_stage(tmp_path, how):
    claims = Claims(tmp_path / "claims", beat=0.01)
    with claims.holding("embed") as mine:
        if how == "taken over":
            (claims.folder / "embed.2").write_text("{}")
        else:
            mine.path.unlink()
        wait_until(lambda: mine.lost)
        with pytest.raises(ClaimLostError):
            mine.check()
    assert files(claims.folder) == (["embed.2"] if how == "taken over" else [])


def test_a_claim_that_was_removed_and_made_again_by_another_is_lost_and_stays_the_others(tmp_path):
    claims = Claims(tmp_path / "claims", beat=0.01)
    with claims.holding("embed") as mine:
        mine.path.unlink()
        write_claim(tmp_path, "embed")  # the same number
        wait_until(lambda: mine.lost)
    assert claims.held("embed")


def test_a_claim_made_while_dead_ones_are_tidied_stays(tmp_path, monkeypatch):
    dead = write_claim(tmp_path, "embed", age=1000)
    claims, is_dead, made = Claims(tmp_path / "claims"), Claims._dead, []

    def taken_over_in_the_meantime(self, path):
        found = is_dead(self, path)
        if path == dead and not made:
            made.append(path.with_name("embed.2"))
            made[0].write_text("{}")
        return found

    monkeypatch.setattr(Claims, "_dead", taken_over_in_the_meantime)
    claims.tidy()
    assert files(claims.folder) == ["embed.2"]


def test_a_stage_that_is_finished_while_leftovers_are_removed_is_no_error(tmp_path, monkeypatch):
    leftover = tmp_path / "run" / "stages" / ".embed.abc.tmp"
    with open_run_folder(tmp_path / "run", {}, {}, keep=True):
        leftover.mkdir()

    def finished_in_the_meantime(self, stage):
        leftover.rename(leftover.with_name(stage))
        return False

    monkeypatch.setattr(Claims, "held", finished_in_the_meantime)
    with open_run_folder(tmp_path / "run", {}, {}) as folder:
        assert folder.finished("embed")


def wait_until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_work_whose_claim_is_lost_stops_and_the_stage_of_the_other_stays(tmp_path):
    tried = []
    with open_run_folder(tmp_path / "run", {}, {}) as folder:

        def work(stage, progress):
            tried.append("embed")
            (stage / "x").write_text("mine")
            if len(tried) == 1:
                held[0].lost = True
                progress(1, 2)

        held = []

        def do(job, claim):
            held[:] = [claim]
            make_stage(job, folder, "", lambda *_: None, claim)

        take_turns([Job("embed", "embed", work)], folder, do, nap=0.0)
        assert tried == ["embed", "embed"]
        with folder.write_stage("other") as mine:
            with folder.write_stage("other") as first:
                (first / "x").write_text("first")
            (mine / "x").write_text("second")
        assert (folder.stage_path("other") / "x").read_text() == "first"
        assert sorted(path.name for path in (tmp_path / "run" / "stages").iterdir()) == ["embed", "other"]


def test_what_another_process_makes_is_neither_tidied_nor_forgotten(tmp_path):
    leftovers = [tmp_path / "run" / "stages" / f".{stage}.abc.tmp" for stage in ("embed", "score")]
    with open_run_folder(tmp_path / "run", {"alpha": 1}, {}, keep=True):
        pass
    for leftover in leftovers:
        leftover.mkdir()
    write_claim(tmp_path / "run", "embed")
    with open_run_folder(tmp_path / "run", {"alpha": 1}, {}):
        assert [leftover.exists() for leftover in leftovers] == [True, False]
    assert leftovers[0].exists()
    other = open_run_folder(tmp_path / "run", {"alpha": 2}, {})
    with pytest.raises(InputError, match="alpha: 1 there, 2 here"), other:
        pass

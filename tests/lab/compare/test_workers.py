"""Several processes on one comparison, as printed jobs and as workers: they give the bits of one process."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from same_stages import SMALL, SMALL_STAGES, assert_same_stages

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_json
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.cli.jobs import NOT_NOW
from kslottery_fast.lab.experiment import workers
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.experiment.plan import Experiment
from kslottery_fast.lab.experiment.run_folder import RunFolder, read_header
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.workers import LocalWorkers, WorkerError


@pytest.fixture
def reads(monkeypatch):
    """The stages whose files the work of each stage looked at."""
    found: dict[str, set[str]] = {}
    write_stage, stage_path, working = RunFolder.write_stage, RunFolder.stage_path, []

    @contextlib.contextmanager
    def writing(self, stage, *rest):
        with write_stage(self, stage, *rest) as folder:
            working.append(found.setdefault(stage, set()))
            yield folder
            working.pop()

    def looking(self, stage):
        for names in working:
            names.add(self.prefix + stage)
        return stage_path(self, stage)

    monkeypatch.setattr(RunFolder, "write_stage", writing)
    monkeypatch.setattr(RunFolder, "stage_path", looking)
    return found


def test_printed_jobs_read_what_they_need_alone_and_one_after_the_other_complete_the_folder(
    arguments, finished, tmp_path, capsys, reads
):
    output = tmp_path / "a folder"
    command = arguments(output, "--arms", "partial@0.3,partial@0.000001,frequency@4", "--seed", "0", "--print-jobs")
    assert cli.main([*command, "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    level = {job["stage"]: job["level"] for job in jobs}
    for job in jobs:
        assert job["level"] == 1 + max((level[need] for need in job["needs"]), default=0)
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [f"{job['command']}  # level {job['level']}" for job in jobs]
    assert lines[-1] == f"kslottery report {shlex.quote(str(output))}  # level {max(level.values()) + 1}"
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "kslottery"
        assert cli.main(words) == 0, line
    assert_same_stages(output, finished, len(jobs))
    assert (output / "summary.json").exists()
    assert reads.keys() == level.keys()
    for job in jobs:
        assert reads[job["stage"]] - {job["stage"]} <= set(job["needs"]), job["stage"]
    capsys.readouterr()
    assert cli.main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1  # the report alone


def test_a_job_finds_relative_paths_from_any_directory(arguments, compare_world, tmp_path, capsys, monkeypatch):
    relative = ("--model", "model", "--corpus", "pairs.tsv")
    monkeypatch.chdir(compare_world)
    assert cli.main(arguments(tmp_path / "run", *relative, "--arms", "frequency@4", "--print-jobs")) == 0
    header = read_header(tmp_path / "run")
    assert header["directory"] == str(compare_world)
    assert not {"directory", *header["settings"]}.intersection(header["grid"])
    monkeypatch.chdir(tmp_path)
    for stage in ("es.corpus", "es.untuned"):
        assert cli.main(["job", "run", stage]) == 0, capsys.readouterr().err
        assert RunFolder(tmp_path / "run").finished(stage)
    assert Path.cwd() == tmp_path, "the directory is changed for the time of the job"
    write_json(tmp_path / "run" / "run.json", {**header, "directory": str(tmp_path / "moved")})
    assert cli.main(["job", "run", "es.0.embed"]) == 2
    told = capsys.readouterr().err
    assert f"(corpus 'pairs.tsv' and model 'model') begin in {tmp_path / 'moved'}, which is no directory here" in told
    monkeypatch.chdir(compare_world)
    assert cli.main(arguments(tmp_path / "run", *relative, "--arms", "frequency@4", "--print-jobs")) == 0
    assert read_header(tmp_path / "run") == header, "a later call records its own directory"


def test_a_job_says_by_its_exit_code_whether_it_is_done_cannot_be_done_yet_or_does_not_exist(
    finished, tmp_path, capsys
):
    output = shutil.copytree(finished, tmp_path / "copy")
    for ending in ("", ".score", ".paraphrase"):
        shutil.rmtree(output / "stages" / f"es.1.l2@4{ending}")
    run = ["job", str(output)]
    assert cli.main([*run, "es.0.embed"]) == 0
    assert "es.0.embed is finished already" in capsys.readouterr().err
    assert cli.main([*run, "es.1.l2@4.score"]) == NOT_NOW == 75
    assert "not now: es.1.l2@4.score needs es.1.l2@4, which must be finished first" in capsys.readouterr().err
    with RunFolder(output).claims.holding("es.1.l2@4"):
        assert cli.main([*run, "es.1.l2@4"]) == NOT_NOW
    assert "not now: another process makes es.1.l2@4" in capsys.readouterr().err
    assert cli.main([*run, "es.1.l4@4"]) == 2
    assert "has no stage 'es.1.l4@4'; did you mean es.1.l2@4?" in capsys.readouterr().err
    assert cli.main(["job", str(tmp_path / "none"), "es.1.l2@4"]) == 2
    assert cli.main([*run]) == 0  # without a stage: all that are left
    assert_same_stages(output, finished, len(list((finished / "stages").iterdir())))


def test_two_workers_make_the_stages_of_one_and_the_error_of_a_worker_is_that_of_the_command(
    arguments, finished, tmp_path, capfd
):
    output = tmp_path / "two"
    assert cli.main(arguments(output, *SMALL, "--workers", "2")) == 0
    assert_same_stages(output, finished, SMALL_STAGES)
    assert not list((output / "stages").glob("es.*.full/weights.safetensors"))
    told = capfd.readouterr().err
    assert "2 workers, each with 1 thread" in told
    for words in ("/13] Full Tuning: done in", "usable pairs of", "NLL"):
        assert words in told
    assert told.count("usable pairs of") == 1
    records = [json.loads(path.read_text())["environment"] for path in output.rglob("stage.json")]
    assert {record["system"]["threads"] for record in records} == {1}
    header = read_header(output)
    header["grid"]["arms"] = ["frequency@4000"]
    settings, folder = ExperimentSettings.recorded(header, output), RunFolder(output)
    with pytest.raises(InputError, match=r"^arm frequency@4000 asks for 4,000 rows, but only"):
        Experiment(settings, folder, RunConsole()).work("", engine=LocalWorkers(settings, 1))
    assert not (output / "claims").exists()


def test_the_traceback_of_a_worker_is_shown():
    with pytest.raises(WorkerError, match="division by zero"):
        workers._show(("crash", "Traceback ... division by zero"), 1, None)


def claimed(output: Path, name: str) -> int:
    """The pid of the process that holds a claim, as soon as there is one."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((output / "claims" / name).read_text())["pid"]
        time.sleep(0.01)
    pytest.fail(f"nobody claimed {name}")


def test_after_a_killed_worker_the_other_goes_on_and_after_ctrl_c_the_same_command_resumes_with_the_same_bits(
    arguments, finished, tmp_path
):
    output = tmp_path / "killed"
    command = arguments(output, *SMALL)
    # A shell that runs the tests in the background makes its processes ignore Ctrl-C.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from kslottery_fast.lab.cli.main import main; sys.exit(main(sys.argv[1:]))"
    program = [sys.executable, "-c", code, *command, "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # one thread for each
    with subprocess.Popen(
        program, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        killed = claimed(output, "es.0.embed.1")
        os.kill(killed, signal.SIGKILL)
        other = claimed(output, "es.0.embed.2")
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate()[1]
    assert process.returncode == 130, told
    assert "was killed by signal 9, and the others go on with its job" in told
    assert "the same command resumes the experiment" in told
    assert "Traceback" not in told
    assert other != killed
    for pid in (killed, other):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not (output / "claims").exists()
    assert not list(output.rglob("*.tmp"))
    assert cli.main(command) == 0
    assert_same_stages(output, finished, SMALL_STAGES)

"""`make gpu` itself, and the benchmark that it ends with: what can go wrong without a GPU, and must not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_device, gpu_table, gpu_targets, gpu_training, gpu_variants, gpu_workloads, machine
from benchmarks.measure import Contender, Timing
from benchmarks.records import verdict
from benchmarks.workloads import Spec
from kslottery_fast import ks_statistics

HERE = Path(__file__).parent / "gpu"
pytestmark = pytest.mark.skipif(not HERE.exists(), reason="not run from a source tree")


def load(name):
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path, monkeypatch):
    module = load("run")
    for name in ("WORK", "SITE"):
        monkeypatch.setattr(module, name, tmp_path / name)
    return module


def test_the_budgets_make_at_most_eight_minutes(run):
    assert sum(phase.budget for phase in run.phases(Path("wheels"), None) if phase.run) <= run.TOTAL == 480


def test_a_phase_that_fails_does_not_stop_the_others_and_the_exit_code_says_so(run, monkeypatch, capsys):
    done = []
    clock = itertools.count(0, 100)  # moves on at each look: start, begin and end of each phase
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    def fails(deadline):
        raise run.PhaseError("it broke")

    phases = [
        run.Phase("first", 1, fails),
        run.Phase("second", 1, done.append, fails),
        run.Phase("third", 2, done.append),
    ]
    monkeypatch.setattr(run, "phases", lambda *_: phases)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 1
    assert done == [300 + 1, 500]  # the eight minutes were over before the last began
    summary = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split(" s  ")[1] for line in summary] == ["FAILED: it broke", "ok", "ok"]
    done.clear()
    clock = itertools.count(0, 100)
    monkeypatch.setattr(sys, "argv", ["run.py", "--dry"])
    phases[1:] = [run.Phase("dry alone", 1, None, done.append), *phases[2:]]
    assert run.main() == 0
    assert done == [100 + run.DRY_PATIENCE]
    assert capsys.readouterr().out.splitlines()[-1].endswith("left out: needs a device")
    monkeypatch.setattr(sys, "argv", ["run.py", "--dry", "--only", "third"])
    assert run.main() == 0
    assert "third" in capsys.readouterr().out.splitlines()[-1]


def test_a_program_that_fails_hangs_or_is_missing_is_a_failed_phase(run):
    for command, message in (
        ([sys.executable, "-c", "raise SystemExit(3)"], "exit code 3"),
        ([sys.executable, "-c", "import time; time.sleep(9)"], "took longer than the 0 s it had"),
        (["no-such-program"], "no-such-program was not found"),
    ):
        with pytest.raises(run.PhaseError, match=message):
            run.call(command, time.monotonic() + (0.3 if "time" in command[-1] else 60), cwd=HERE)
    with pytest.raises(run.PhaseError, match="no time was left for it"):
        run.call([sys.executable, "-c", ""], time.monotonic() - 1, cwd=HERE)


def test_what_a_program_started_ends_with_it(run, tmp_path):
    child = f"import time; time.sleep(2); open({str(tmp_path / 'written')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(run.PhaseError, match="took longer"):
        run.call([sys.executable, "-c", parent], time.monotonic() + 1, cwd=tmp_path)
    time.sleep(2.5)
    assert not (tmp_path / "written").exists()


def test_only_what_is_missing_is_taken_from_the_wheels_and_what_they_lack_is_named(run, tmp_path, monkeypatch):
    for name in ("pybind11", "numpy"):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
    found = importlib.util.find_spec
    missing = {"pybind11"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    run.unpack(tmp_path)
    assert [path.name for path in run.SITE.iterdir()] == ["pybind11"]
    missing.add("scipy")
    with pytest.raises(run.PhaseError, match=r"no wheel for scipy \(missing\): run `make gpu-wheels`"):
        run.unpack(tmp_path)


def test_every_module_that_is_needed_has_its_wheel_fetched(run):
    (line,) = re.findall(r"^GPU_WHEELS \?= (.+)$", (HERE.parents[1] / "Makefile").read_text(), re.MULTILINE)
    assert {name.removeprefix("_") for name in run.NEEDED} == set(line.split())


def test_what_is_too_old_for_this_project_is_taken_from_the_wheels_too(run, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "setuptools-84-py3-none-any.whl", "w") as wheel:
        wheel.writestr("setuptools/__init__.py", "")
    versions = {"setuptools": "68.1.2", "pytest": "8"}
    found = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or found(name))
    assert run.lacking() == {"setuptools": "68.1.2, 77 is needed"}
    run.unpack(tmp_path)
    assert [path.name for path in run.SITE.iterdir()] == ["setuptools"]
    versions["pytest"] = "7.4.4"
    with pytest.raises(run.PhaseError, match=r"no wheel for pytest \(7\.4\.4, 8 is needed\)"):
        run.unpack(tmp_path)


def test_versions_are_compared_by_their_numbers(run):
    assert run.version_of("84.10") > run.version_of("84.9.3") > run.version_of("77")
    assert run.version_of("3.0.0rc1") == (3, 0, 0)
    assert {"setuptools", "pybind11", "scipy", "pytest", "safetensors"} <= set(run.least_versions())


def test_folders_of_this_python_and_the_toolkit_stay_on_the_search_paths(run, tmp_path, monkeypatch):
    (tmp_path / "inherited_module.py").write_text("")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "$@" > arguments\n')
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    run.WORK.mkdir()
    run.call_python(["-c", "import inherited_module"], time.monotonic() + 60)
    run.sanitize("memcheck")(time.monotonic() + 60)
    arguments = (run.WORK / "arguments").read_text().split()
    assert arguments[arguments.index("--report-api-errors") + 1] == "no"
    assert arguments[arguments.index("--tool") + 1] == "memcheck"
    monkeypatch.delenv("CUDA_HOME")
    program.unlink()
    monkeypatch.setattr(run, "search_path", lambda *_: os.defpath)
    with pytest.raises(run.PhaseError, match="compute-sanitizer was not found, neither on PATH nor next to nvcc"):
        run.sanitize("memcheck")(time.monotonic() + 60)


def test_warnings_of_an_unknown_compiler_are_no_errors_but_those_of_ours_are(run, monkeypatch):
    settings = []
    monkeypatch.setattr(run, "architecture", lambda deadline: "90-real")
    monkeypatch.setattr(run, "call", lambda *_, **environment: settings.append(environment.get("KSL_WERROR")))
    (phase,) = [phase for phase in run.phases(Path("wheels"), None) if phase.name == "build"]
    phase.run(time.monotonic() + 60)
    phase.dry(time.monotonic() + 60)
    assert [setting for setting in settings if setting] == ["OFF", "ON"]


def test_tests_that_need_a_gpu_are_collected_only_when_asked_for_by_name():
    ignore = load("conftest").pytest_ignore_collect
    for arguments, ignored in (
        (["kslottery_fast", "tests"], True),
        (["tests/cuda"], True),
        ([str(HERE)], None),
        ([f"{HERE}/test_gpu_rows.py::test_x"], None),
    ):
        assert ignore(SimpleNamespace(args=arguments)) is ignored


def test_every_target_on_a_gpu_belongs_to_a_row_that_is_measured():
    assert set(gpu_targets.TARGETS) <= set(gpu_workloads.specs(gpu_workloads.Sizes()))
    assert len(gpu_targets.TARGETS) == 12


def test_the_benchmark_and_the_tests_on_a_gpu_load_without_what_only_training_needs(run):
    blocked = ("peft", "transformers", "tokenizers")
    code = f"""
import sys
sys.modules |= dict.fromkeys({blocked})
import benchmarks.gpu_table, pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, *map(str, run.pytest("--collect-only", HERE)[2:])]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu_rows.py" in done.stdout


def test_a_row_that_misses_a_target_falls_short_and_says_which():
    spec = Spec("RowAdamW", (18, 4_096), torch.float32, gpu_workloads.REPLAY)
    for torch_seconds, expected in (
        (8e-4, "met: microseconds <= 8, x torch >= 100"),
        (7.9e-4, "FALLS SHORT: x torch >= 100"),
    ):
        ratios = gpu_targets.ratios({"ours": Timing.of([7.99e-6]), "torch": Timing.of([torch_seconds])})
        assert verdict(gpu_targets.targets_of(spec), ratios) == expected


def test_tables_change_as_many_rows_as_their_case_says():
    for case, changed in zip(gpu_workloads.CASES, (40, 2, 0), strict=True):
        before, after = gpu_workloads.tables_of((40, 64), torch.float32, case, torch.device("cpu"))
        assert int((ks_statistics(before, after) > 0).sum()) == changed


def test_the_whole_benchmark_runs_on_the_cpu_and_writes_its_json(tmp_path, monkeypatch, capsys):
    path = tmp_path / "dry.json"
    monkeypatch.setattr(sys, "argv", ["gpu_table", "--dry", "--output", str(path)])
    assert gpu_table.main() == 0
    written = json.loads(path.read_text())
    specs = gpu_workloads.specs(gpu_workloads.SMALL)
    assert [(row["op"], row["case"]) for row in written["rows"]] == [(spec.op, spec.case) for spec in specs]
    assert written["machine"]["dry_run"]
    peers = {gpu_workloads.UNEQUAL_OP: "scipy", gpu_training.STEP: "peft"}
    assert all({"ours", peers.get(row["op"], "torch")} <= set(row["seconds"]) for row in written["rows"])
    with_peer = [row for row in written["rows"] if row["op"] in (*gpu_workloads.KS_OPS, gpu_workloads.UNEQUAL_OP)]
    assert [row["agrees"] for row in with_peer] == [True] * 25
    assert "DRY RUN" in capsys.readouterr().out


def test_rows_with_a_target_are_measured_first_and_next_to_those_that_share_their_data():
    ordered = gpu_table.in_order(gpu_workloads.specs(gpu_workloads.Sizes()))
    assert sorted(map(str, ordered)) == sorted(map(str, gpu_workloads.specs(gpu_workloads.Sizes())))
    first = max(i for i, spec in enumerate(ordered) if gpu_targets.targets_of(spec))
    tables = [(spec.shape, spec.dtype, spec.case) for spec in ordered if spec.op in gpu_workloads.KS_OPS]
    assert len(list(itertools.groupby(tables))) == len(set(tables))
    assert first < len(ordered) / 2


def test_a_variant_is_chosen_while_it_runs_and_compared_turn_by_turn(monkeypatch, tmp_path, capsys):
    seen = []
    variant = gpu_variants.Variant("KSL_TEST_VARIANT", "1", ("ks_decide",), ("float32",))
    decide = gpu_workloads.ops.ks_decide

    def spied(*arguments):
        seen.append(os.environ.get("KSL_TEST_VARIANT"))
        return decide(*arguments)

    monkeypatch.setattr(gpu_workloads.ops, "ks_decide", spied)
    monkeypatch.setattr(gpu_table, "VARIANTS", (variant,))
    path = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", [*SMALL_ROW, "--variants", "--output", str(path)])
    assert gpu_table.main() == 0
    assert seen.count("1") == seen.count(None) > 0
    assert "KSL_TEST_VARIANT" not in os.environ
    rows = json.loads(path.read_text())["rows"]
    assert all(set(row["variants"]) == {"KSL_TEST_VARIANT=1"} for row in rows)
    assert capsys.readouterr().out.count("KSL_TEST_VARIANT=1: ") == len(rows) == 3


def test_a_variant_with_a_wrong_result_falls_short(monkeypatch, tmp_path):
    variant = gpu_variants.Variant("KSL_TEST_VARIANT", "1", ("ks_decide",))
    decide = gpu_workloads.ops.ks_decide

    def wrong_as_variant(*arguments):
        decided, flags = decide(*arguments)
        return decided.logical_not() if "KSL_TEST_VARIANT" in os.environ else decided, flags

    monkeypatch.setattr(gpu_workloads.ops, "ks_decide", wrong_as_variant)
    monkeypatch.setattr(gpu_table, "VARIANTS", (variant,))
    monkeypatch.setattr(sys, "argv", [*SMALL_ROW, "--variants", "--output", str(tmp_path / "rows.json")])
    assert gpu_table.main() == 1


SMALL_ROW = ["gpu_table", "--dry", "--only", "ks_decide, 96 x 64 float32"]


def test_a_row_that_fails_is_named_and_all_others_are_in_the_file(monkeypatch, capsys, tmp_path):
    prepare, seen = gpu_workloads.prepare, []

    def breaks(spec, sizes, device):
        seen.append(json.loads(path.read_text())["rows"] if path.exists() else None)
        if "5%" in spec.case:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return prepare(spec, sizes, device)

    path = tmp_path / "rows.json"
    monkeypatch.setattr(gpu_workloads, "prepare", breaks)
    monkeypatch.setattr(sys, "argv", [*SMALL_ROW, "--output", str(path)])
    assert gpu_table.main() == 1
    rows = json.loads(path.read_text())["rows"]
    assert [len(before) if before else before for before in seen] == [None, 1, 2]  # written after each row
    assert ["seconds" in row for row in rows] == [True, False, True]
    assert rows[1]["verdict"] == "FALLS SHORT: error: OutOfMemoryError: CUDA out of memory."
    assert rows[1]["verdict"] in capsys.readouterr().out


def test_a_result_that_is_not_that_of_torch_falls_short(monkeypatch, tmp_path):
    decide = gpu_workloads.ops.ks_decide

    def wrong(before, after, threshold):
        decided, flags = decide(before, after, threshold)
        return decided.logical_not(), flags

    monkeypatch.setattr(gpu_workloads.ops, "ks_decide", wrong)
    monkeypatch.setattr(sys, "argv", [*SMALL_ROW, "--output", str(tmp_path / "rows.json")])
    assert gpu_table.main() == 1
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["verdict"] for row in rows} == {"FALLS SHORT: the result is not that of torch"}


def test_the_commit_is_named_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("KSL_COMMIT", raising=False)
    assert machine.machine()["commit"] == "unknown"
    monkeypatch.setenv("KSL_COMMIT", "1234abcd")
    assert machine.machine()["commit"] == "1234abcd"


def test_the_commit_may_be_given_on_the_command_line(monkeypatch, tmp_path):
    path = tmp_path / "rows.json"
    monkeypatch.setenv("KSL_COMMIT", "of the environment")
    monkeypatch.setattr(
        sys, "argv", ["gpu_table", "--dry", "--only", "no such row", "--output", str(path), "--commit", "x1"]
    )
    assert gpu_table.main() == 0
    assert json.loads(path.read_text())["machine"]["commit"] == "x1"


def test_what_no_time_is_left_for_is_named_and_fails(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu_table", "--dry", "--seconds", "-1", "--output", str(tmp_path / "x.json")])
    assert gpu_table.main() == 1
    assert capsys.readouterr().out.count("FALLS SHORT: not measured, the -1 seconds are over") == len(
        gpu_workloads.specs(gpu_workloads.SMALL)
    )


def test_without_a_device_the_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_table"])
    assert gpu_table.main() == 2
    assert "torch finds no CUDA device; --dry" in capsys.readouterr().err


def test_the_stand_in_captures_by_running_the_step():
    calls = []
    device = gpu_device.StandIn()
    replay = device.captured(lambda: calls.append(1))
    device.take_turns({"ours": Contender(lambda turn: replay())}, turns=2)
    assert len(calls) == 3 + 1 + 2

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
import threading
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
    """tests/gpu/run.py with what it imports, and with folders of its own."""
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("gpu_programs", "gpu_building"):
        sys.modules.pop(name, None)
    module = load("run")
    monkeypatch.setattr(module.programs, "WORK", tmp_path / "WORK")
    module.programs.WORK.mkdir()
    yield module
    for name in ("gpu_programs", "gpu_building"):
        sys.modules.pop(name, None)


@pytest.fixture
def building(run):
    return sys.modules["gpu_building"]


def asked(run, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    return run.parsed()


def test_the_budgets_make_five_minutes(run, monkeypatch):
    phases = run.phases(asked(run, monkeypatch))
    assert sum(phase.budget for phase in phases if phase.run) == run.TOTAL == 300
    names = [phase.name for phase in phases if phase.run]
    assert names == [
        *("machine", "wheels", "build", "quick tests", "benchmark"),
        *("memcheck", "racecheck", "synccheck", "initcheck", "long tests"),
    ]


def with_phases(run, monkeypatch, tmp_path, phases, *arguments):
    """Run these phases on a clock of their own, which `done` moves on. Return the exit code and the summary."""
    monkeypatch.setattr(run, "phases", lambda _: phases)
    monkeypatch.setattr(sys, "argv", ["run.py", "--results", str(tmp_path / "results"), *arguments])
    code = run.main()
    return code, json.loads((tmp_path / "results" / "summary.json").read_text())


def test_a_phase_that_fails_costs_no_other_and_each_is_written_as_it_ends(run, monkeypatch, tmp_path, capsys):
    seen = []

    def fails(deadline):
        run.log.say("a last word")
        raise run.PhaseError("it broke")

    def crashes(deadline):
        seen.append(json.loads((tmp_path / "results" / "summary.json").read_text())["phases"])
        raise KeyError("a fault of ours")

    phases = [run.Phase("first", 1, fails), run.Phase("second", 1, crashes), run.Phase("third", 2, lambda _: None)]
    monkeypatch.setenv("KSL_COMMIT", "1234abcd")
    code, summary = with_phases(run, monkeypatch, tmp_path, phases)
    assert (code, summary["commit"]) == (1, "1234abcd")
    assert [phase["outcome"] for phase in seen[0]] == ["FAILED: it broke"]
    assert "a last word" in seen[0][0]["end"]
    outcomes = [phase["outcome"] for phase in summary["phases"]]
    assert outcomes == ["FAILED: it broke", "FAILED: KeyError: 'a fault of ours'", "ok"]
    assert [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines()[-3:]] == outcomes
    assert "a last word" in (tmp_path / "results" / "log.txt").read_text()


def test_time_that_a_phase_leaves_over_goes_to_the_later_ones_and_no_more(run, monkeypatch, tmp_path):
    now, deadlines = [1_000.0], []
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])

    def takes(seconds):
        def phase(deadline):
            deadlines.append(deadline - 1_000)
            now[0] += seconds

        return phase

    phases = [run.Phase("a", 10, takes(4)), run.Phase("b", 20, takes(40)), run.Phase("c", 5, takes(1), takes(0))]
    with_phases(run, monkeypatch, tmp_path, phases)
    assert deadlines == [10, 30, 35]
    now[0], deadlines[:] = 1_000.0, []
    code, summary = with_phases(run, monkeypatch, tmp_path, phases, "--dry")
    assert (code, deadlines) == (0, [5 * run.DRY_PATIENCE])
    assert [phase["outcome"] for phase in summary["phases"]] == ["left out: needs a device"] * 2 + ["ok"]


def test_phases_beside_each_other_share_their_time_and_keep_their_lines_apart(run, monkeypatch, tmp_path, capsys):
    both = threading.Barrier(2, timeout=20)
    deadlines = []

    def says(name):
        def phase(deadline):
            deadlines.append(deadline)
            both.wait()  # fails unless the other runs too
            run.call([sys.executable, "-c", f"print('from {name}')"], deadline)

        return phase

    phases = [run.Phase(name, budget, says(name), beside=True) for name, budget in (("a", 100), ("b", 200))]
    code, summary = with_phases(run, monkeypatch, tmp_path, [run.Phase("first", 50, lambda _: None), *phases])
    assert code == 0, summary
    assert len(set(deadlines)) == 1
    ends = {phase["name"]: phase["end"] for phase in summary["phases"]}
    assert "from a" in ends["a"]
    assert "from b" not in ends["a"]
    assert {"a: from a", "b: from b"} <= set(capsys.readouterr().out.splitlines())


def test_a_phase_that_is_asked_for_brings_the_build_along_and_an_unknown_one_is_refused(run, monkeypatch):
    phases = run.phases(asked(run, monkeypatch))
    names = [phase.name for phase in run.chosen(phases, "benchmark")]
    assert names == ["wheels", "build", "benchmark"]
    assert [phase.name for phase in run.chosen(phases, "machine")] == ["machine"]
    assert run.chosen(phases, "") == phases
    with pytest.raises(SystemExit, match="there is no phase 'bench'; expected one of: machine, wheels, build"):
        run.chosen(phases, "bench")


def test_a_tuning_round_asks_the_benchmark_for_its_rows_and_leaves_it_time(run, monkeypatch):
    commands = []
    monkeypatch.setattr(run, "call_python", lambda arguments, *_: commands.append(list(map(str, arguments))))
    found = asked(run, monkeypatch, "--only", "benchmark", "--cases", "RowAdamW|bfloat16", "--variants")
    phases = run.chosen(run.phases(found), found.only)
    assert sum(phase.budget for phase in phases if phase.name != "build") < 90 - 20
    phases[-1].run(time.monotonic() + 100)
    (command,) = commands
    assert command[command.index("--only") + 1] == "RowAdamW|bfloat16"
    assert "--variants" in command
    assert 80 < float(command[command.index("--seconds") + 1]) < 100


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


def test_only_what_is_missing_is_taken_from_the_wheels_and_what_they_lack_is_named(building, tmp_path, monkeypatch):
    for name in ("pybind11", "numpy"):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
    found = importlib.util.find_spec
    missing = {"pybind11"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    building.unpack(tmp_path)
    assert [path.name for path in building.programs.site().iterdir()] == ["pybind11"]
    missing.add("scipy")
    with pytest.raises(building.PhaseError, match=r"no wheel for scipy \(missing\): run `make gpu-wheels`"):
        building.unpack(tmp_path)


def test_every_module_that_is_needed_has_its_wheel_fetched(building):
    (line,) = re.findall(r"^GPU_WHEELS \?= (.+)$", (HERE.parents[1] / "Makefile").read_text(), re.MULTILINE)
    assert {name.removeprefix("_") for name in building.NEEDED} == set(line.split())


def test_what_is_too_old_for_this_project_is_taken_from_the_wheels_too(building, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "setuptools-84-py3-none-any.whl", "w") as wheel:
        wheel.writestr("setuptools/__init__.py", "")
    versions = {"setuptools": "68.1.2", "pytest": "8"}
    found = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or found(name))
    assert building.lacking() == {"setuptools": "68.1.2, 77 is needed"}
    building.unpack(tmp_path)
    assert [path.name for path in building.programs.site().iterdir()] == ["setuptools"]
    versions["pytest"] = "7.4.4"
    with pytest.raises(building.PhaseError, match=r"no wheel for pytest \(7\.4\.4, 8 is needed\)"):
        building.unpack(tmp_path)


def test_versions_are_compared_by_their_numbers(building):
    assert building.version_of("84.10") > building.version_of("84.9.3") > building.version_of("77")
    assert building.version_of("3.0.0rc1") == (3, 0, 0)
    assert {"setuptools", "pybind11", "scipy", "pytest", "safetensors"} <= set(building.least_versions())


def test_folders_of_this_python_and_the_toolkit_stay_on_the_search_paths(run, tmp_path, monkeypatch):
    (tmp_path / "inherited_module.py").write_text("")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "$@" > arguments\n')
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    run.call_python(["-c", "import inherited_module"], time.monotonic() + 60)
    run.sanitize("memcheck")(time.monotonic() + 60)
    arguments = (run.programs.WORK / "arguments").read_text().split()
    assert arguments[arguments.index("--report-api-errors") + 1] == "no"
    assert arguments[arguments.index("--tool") + 1] == "memcheck"
    monkeypatch.delenv("CUDA_HOME")
    program.unlink()
    monkeypatch.setattr(run.programs, "search_path", lambda *_: os.defpath)
    with pytest.raises(run.PhaseError, match="compute-sanitizer was not found, neither on PATH nor next to nvcc"):
        run.sanitize("memcheck")(time.monotonic() + 60)


def test_warnings_of_an_unknown_compiler_are_no_errors_but_those_of_ours_are(run, building, monkeypatch, tmp_path):
    settings = []
    monkeypatch.setattr(run, "architecture", lambda deadline: "90-real")
    monkeypatch.setattr(building, "call", lambda *_, environment, **__: settings.append(environment["KSL_WERROR"]))
    monkeypatch.setattr(building, "call_python", lambda *_: None)
    phases = run.phases(asked(run, monkeypatch, "--module", tmp_path))
    (phase,) = [phase for phase in phases if phase.name == "build"]
    phase.run(time.monotonic() + 60)
    phase.dry(time.monotonic() + 60)
    assert settings == ["OFF", "ON"]


def module_of(building, folder, **changes):
    """A module as `make gpu-module` leaves it, of nothing that can be loaded."""
    folder.mkdir(exist_ok=True)
    for name in ("_C.none.so", "gpu_read.so"):
        (folder / name).write_text("")
    right = {"sources": building.fingerprint(building.ROOT), "python": building.tag(), "architectures": "90-real"}
    (folder / "module.json").write_text(json.dumps(right | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": "others"}, "it is not for these sources"),
        ({"python": "cpython-27 x"}, "it is for cpython-27 x"),
        ({"architectures": "80-real"}, "it is not for 90-real, it is for 80-real"),
    ],
)
def test_a_module_that_was_brought_along_is_taken_only_where_it_fits(building, tmp_path, changes, words):
    assert building.why_not(module_of(building, tmp_path / "right"), "90-real") == ""
    assert words in building.why_not(module_of(building, tmp_path / "wrong", **changes), "90-real")
    assert "there is none in" in building.why_not(tmp_path / "missing", "90-real")


@pytest.mark.parametrize("runs", [True, False])
def test_a_module_that_does_not_run_here_is_replaced_by_a_build(run, building, tmp_path, monkeypatch, capsys, runs):
    built = []

    def check(*_, **__):
        if not runs:
            raise building.PhaseError("exit code 1")

    monkeypatch.setattr(building, "READER", tmp_path / "reader" / "gpu_read.so")
    monkeypatch.setattr(building, "check_package", check)
    monkeypatch.setattr(run, "architecture", lambda deadline: "90-real")
    monkeypatch.setattr(run, "build", lambda *_, **__: built.append(1))
    run.prepare(module_of(building, tmp_path / "module"))(time.monotonic() + 60)
    assert built == ([] if runs else [1])
    assert ("is taken" if runs else "does not run here (exit code 1)") in capsys.readouterr().out
    assert (building.programs.package() / "kslottery_fast" / "_C.none.so").exists()
    assert (building.programs.package() / "kslottery_fast" / "ops" / "native.py").exists()
    assert (tmp_path / "reader" / "gpu_read.so").exists() == runs


def test_a_copied_tree_compiles_only_what_has_changed(building, tmp_path):
    root, stamps = tmp_path / "tree", tmp_path / "times.json"
    (root / "csrc").mkdir(parents=True)
    for name in ("csrc/a.cu", "csrc/b.cu", "setup.py"):
        (root / name).write_text(name)
        os.utime(root / name, (1_000, 1_000))
    first = building.fingerprint(root)
    building.keep_times(root, stamps)
    for name in ("csrc/a.cu", "csrc/b.cu", "setup.py"):  # the copy
        (root / name).write_text(name)
    assert building.fingerprint(root) == first
    (root / "csrc/b.cu").write_text("changed")
    building.keep_times(root, stamps)
    times = {path.name: path.stat().st_mtime for path in building.sources(root).values()}
    assert (times["a.cu"], times["setup.py"]) == (1_000, 1_000)
    assert times["b.cu"] > 1_000
    assert building.fingerprint(root) != first


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


def test_the_plan_on_paper_has_every_variant():
    plan = (HERE.parents[1] / "docs" / "gpu.md").read_text()
    assert all(f"| `{variant.value}` |" in plan and variant.variable in plan for variant in gpu_variants.VARIANTS)
    assert set(gpu_variants.KS_OPS) == set(gpu_workloads.KS_OPS)


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
    assert {row["verdict"] for row in rows} == {"FALLS SHORT: the result is not that of its peer"}


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

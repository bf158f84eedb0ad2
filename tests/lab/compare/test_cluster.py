"""A comparison on a Ray cluster of two processes: the bits of one process, also where a task is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from importlib.util import find_spec

import pytest
from same_stages import SMALL, SMALL_STAGES, assert_same_stages

from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.experiment import cluster


@pytest.fixture
def ray(monkeypatch):
    """A cluster of two CPUs on this machine. Ray gets time to start, since the machine may be busy."""
    module = pytest.importorskip("ray", reason="the extra [ray] is not installed")
    for name in ("agent_register_timeout_ms", "raylet_start_wait_time_s", "worker_register_timeout_seconds"):
        monkeypatch.setenv(f"RAY_{name}", "300000" if name.endswith("ms") else "300")
    module.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield module
    module.shutdown()


def kill_the_first(output, stage, killed):
    """Kill the process that holds a stage, as soon as there is one."""
    claim, end = output / "claims" / f"{stage}.1", time.monotonic() + 300
    while not killed and time.monotonic() < end:
        if claim.exists() and (text := claim.read_text()):
            killed.append(json.loads(text)["pid"])
            os.kill(killed[0], signal.SIGKILL)
        time.sleep(0.01)


def test_ray_makes_the_stages_of_one_process_though_a_task_is_killed_and_passes_errors_on(
    arguments, finished, tmp_path, capfd, monkeypatch, ray
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output, killed = tmp_path / "ray", []
    killer = threading.Thread(target=kill_the_first, args=(output, "es.0.embed", killed))
    killer.start()
    assert cli.main(arguments(output, *SMALL, "--cluster", "ray")) == 0
    killer.join()
    assert len(killed) == 1
    assert_same_stages(output, finished, SMALL_STAGES)
    told = capfd.readouterr().err
    assert "a Ray cluster with 2 CPUs and 0 GPUs" in told
    assert "Full Tuning: done in" in told
    assert told.count("usable pairs of") == 1
    assert cli.main(arguments(output, "--arms", "frequency@4000", "--seed", "0", "--cluster", "ray")) == 2
    told = capfd.readouterr().err
    assert "error: arm frequency@4000 asks for 4,000 rows, but only" in told
    assert "Traceback" not in told


def test_without_ray_the_command_says_how_to_install_it_and_leaves_nothing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("kslottery_fast.base.extras.find_spec", lambda name: None if name == "ray" else find_spec(name))
    assert cli.main(arguments(tmp_path / "out", *SMALL, "--cluster", "ray")) == 2
    assert "--cluster ray needs ray; pip install 'kslottery-fast[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(arguments(tmp_path / "out", *SMALL, "--cluster", "ray", "--workers", "2")) == 2
    assert "give --workers or --cluster, not both" in capsys.readouterr().err


def test_a_task_has_one_thread_unless_the_user_asks_for_more(monkeypatch):
    engine = cluster.RayCluster(None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert engine.threads() == 1
    # The list is that of OpenMP, one number for each level of nesting. OpenMP ignores what is not a number.
    for text, threads in (("4", 4), ("4,2", 4), (" 3 , 1", 3), ("many", 1), ("", 1), ("0", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert engine.threads() == threads

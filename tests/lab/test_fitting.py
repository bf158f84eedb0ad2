"""How many workers `--workers auto` starts: what cores and memory allow, and one where that is unknown."""

from __future__ import annotations

import json

import pytest
import torch

from kslottery_fast.base import memory
from kslottery_fast.lab.experiment import workers
from kslottery_fast.lab.experiment.run_folder import RunFolder
from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.settings import ExperimentSettings
from kslottery_fast.lab.experiment.workers import LocalWorkers, fitting


@pytest.fixture
def machine(monkeypatch):
    """``machine(cores, gigabytes)``: a machine without a GPU."""

    def make(cores: int, gigabytes: float) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr(workers, "_cores", lambda: cores)
        monkeypatch.setattr(workers, "available_memory_bytes", lambda: int(gigabytes * 1e9))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)

    return make


def of(model: str = "smollm2-135m") -> ExperimentSettings:
    return ExperimentSettings(RunSettings(model=model))


@pytest.mark.parametrize(
    ("cores", "gigabytes", "expected"), [(4, 100, 4), (4, 10, 3), (4, 9.5, 2), (4, 1, 1), (1, 100, 1)]
)
def test_there_is_a_worker_for_each_core_and_each_3_3_gigabytes(machine, tmp_path, cores, gigabytes, expected):
    machine(cores, gigabytes)
    assert fitting(of(), RunFolder(tmp_path)) == expected


def test_the_peak_of_finished_stages_counts_where_there_are_some(machine, tmp_path):
    machine(4, 10)
    for stage, peak in (("es.corpus", 1000), ("es.0.embed", 5000)):
        (tmp_path / "stages" / stage).mkdir(parents=True)
        record = {"seconds": 1.0, "environment": {"peak_memory_mb": peak}}
        (tmp_path / "stages" / stage / "stage.json").write_text(json.dumps(record))
    (tmp_path / "stages" / ".es.0.partial@4.abc.tmp").mkdir()
    assert fitting(of(), RunFolder(tmp_path)) == 2


def test_a_model_on_the_disk_is_measured_and_one_that_is_elsewhere_or_on_a_gpu_gets_one_worker(
    machine, tmp_path, monkeypatch
):
    machine(8, 20)
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.truncate(500_000_000)  # 2 + 4 * 0.5 GB
    assert fitting(of(str(tmp_path / "model")), RunFolder(tmp_path)) == 5
    assert fitting(of("HuggingFaceTB/SmolLM2-360M"), RunFolder(tmp_path)) == 1
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert fitting(of(), RunFolder(tmp_path)) == 1


@pytest.mark.parametrize(("threads", "count", "each"), [(8, 2, 4), (8, 3, 2), (2, 4, 1)])
def test_workers_share_the_threads(monkeypatch, threads, count, each):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert LocalWorkers(of(), count).threads() == each


def test_the_limit_of_a_container_counts(tmp_path):
    assert memory._left_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 50\n")
    assert memory._left_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._left_in_container(tmp_path) == 450


@pytest.mark.parametrize(("left", "available"), [(0, 0), (450, 450), (None, 8192)])
def test_a_full_container_has_no_memory_left(monkeypatch, left, available):
    monkeypatch.setattr(memory.Path, "read_text", lambda *_, **__: "MemAvailable: 8 kB\n")
    monkeypatch.setattr(memory, "_left_in_container", lambda group: left)
    assert memory.available_memory_bytes() == available

"""Unused memory goes back to the system, and progress is still reported."""

import sys
from pathlib import Path

import pytest
import torch

from kslottery_fast.base.memory import release_memory, trimming, trimming_forward


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc_trim, and /proc")
def test_the_free_pieces_of_a_fragmented_heap_are_returned():
    # Pieces below malloc's mmap threshold, every second one kept: what is free lies between what is not.
    pieces = [torch.ones(16_000) for _ in range(6000)]
    kept = pieces[::2]
    del pieces
    before = resident()
    release_memory()
    assert before - resident() > 100e6
    assert all(bool((piece == 1).all()) for piece in kept[::500])


def test_a_model_is_trimmed_inside_the_block_alone(monkeypatch):
    calls = []
    monkeypatch.setattr("kslottery_fast.base.memory.release_memory", lambda: calls.append(1))
    model = torch.nn.Linear(2, 2)
    with trimming_forward(model):
        model(torch.ones(2))
    model(torch.ones(2))
    assert calls == [1]


def test_progress_passes_through_and_each_eighth_call_gives_memory_back(monkeypatch):
    events = []
    monkeypatch.setattr("kslottery_fast.base.memory.release_memory", lambda: events.append("released"))
    report = trimming(lambda *step: events.append(step))
    for step in range(1, 17):
        report(step, 16, "loss 2.5")
    assert [place for place, event in enumerate(events) if event == "released"] == [7, 16]
    assert [event for event in events if event != "released"] == [(step, 16, "loss 2.5") for step in range(1, 17)]

"""A short, fixed slice of the fuzzer of files, and a check that it sees what it looks for."""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import struct
import time

import fuzz_files
import pytest
from fuzz_files import Worker, damaged_files, prepared, read_case
from reader import Reader
from readers import READERS

from kslottery_fast import InputError

CASES = 25
SEED = 20


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name):
    missing = [package for package in READERS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    outcomes = []
    with prepared(name) as (reader, folder, files):
        for case in range(CASES):
            path, content = damaged_files(reader, files, name, SEED, case)
            try:
                outcomes.append(read_case(reader, folder, path, content))
            except BaseException as error:
                again = f"python tests/fuzz/fuzz_files.py --reader {name} --seed {SEED} --case {case}"
                raise AssertionError(again) from error
            (folder / path).write_bytes(files[path])
    assert any(outcomes), "no damage was noticed"


def _wrong(folder):
    text = (folder / "a.txt").read_text("latin-1")
    if text != "valid":
        raise KeyError(text)


def _crash(folder):
    if (folder / "a.txt").read_text("latin-1") != "valid":
        faulthandler.disable()  # pytest's, which would print its stack
        os.abort()


def _endless(folder):
    while (folder / "a.txt").read_text("latin-1") != "valid":
        time.process_time()


def _large(folder):
    if (folder / "a.txt").read_text("latin-1") != "valid":
        bytearray(100 << 20)


def _too_large(folder):
    if (folder / "a.txt").read_text("latin-1") != "valid":
        try:
            bytearray(4 << 30)
        except MemoryError:
            raise InputError("a.txt cannot be read") from None


def _talkative(folder):
    if (folder / "a.txt").read_text("latin-1") != "valid":
        error = InputError("a")
        error.args = ("a" * 5000,)
        raise error


def test_a_state_that_is_half_written_is_not_seen(tmp_path):
    worker = Worker("tickets", 0, 4, tmp_path / "log.jsonl")
    for case in range(4, 8):
        state = (case, 0.5, 1.5, case - 4, 1)
        worker.put(*state)
        with pytest.raises(struct.error):  # when the number of the case is written already
            worker.put(case + 100, "no number", 1.5, 7, 7)
        assert worker.state == state


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (_wrong, "KeyError in test_fuzz_files.py"),
        (_crash, "crash: SIGABRT"),
        (_endless, "no end"),
        (_large, "100 MiB for a file of 2 bytes"),
        (_too_large, "memory ran out"),
        (_talkative, "a message of 5000 characters"),
    ],
)
def test_the_fuzzer_sees(read, what, monkeypatch, tmp_path):
    reader = Reader(lambda folder: (folder / "a.txt").write_text("valid"), read)
    monkeypatch.setitem(READERS, "made-up", reader)
    monkeypatch.setattr(fuzz_files, "SECONDS_PER_CASE", 0.3 if read is _endless else 30)
    monkeypatch.setattr(fuzz_files, "WARM", 0)
    log = tmp_path / "log.jsonl"
    Worker("made-up", 0, 0, log).run(1, time.monotonic() + 60)
    (found,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert found["case"] == 0
    assert what in f"{found['what']} {found['detail']}"

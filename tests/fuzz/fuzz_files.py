"""Damage files in many ways and let every reader read them, for a given time.

    python tests/fuzz/fuzz_files.py --seconds 60 --seed 0
    python tests/fuzz/fuzz_files.py --reader gguf --case 4711 --seed 0   # one case again, with its traceback

A reader has to return, or to raise InputError with a message of one short line. Anything else is a finding: another
exception, a crash, no end within some seconds, or more memory than a small multiple of the file. Each reader runs in a
process of its own, whose address space is limited. Prints the cases and the findings; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib.util
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from mutations import mutated
from reader import Reader, quiet
from readers import READERS

from kslottery_fast import InputError

SECONDS_PER_CASE = 10.0
"""Of the processor, since other programs may keep it busy. A case that only waits ends after thirty times as long."""
SECONDS_TO_PREPARE = 600.0  # packages are imported
SPACE = 256 << 20
"""How much address space a reader may take, beyond what it has before the first damaged file."""
MEMORY = 24 << 20
"""How much memory a reader may use for a file of a few kilobytes. A valid one takes less than a tenth."""
WARM = 8
"""Damaged files that are read first, uncounted: what they import and keep is not the memory of a later file."""
LONGEST = 1200
"""Characters of a message."""
_STATE = struct.Struct("<qddqq")


def damaged_files(reader: Reader, files: dict[str, bytes], name: str, seed: int, case: int) -> tuple[str, bytes]:
    """Which file is damaged in a case, and its bytes."""
    rng = random.Random(f"{seed}/{name}/{case}")
    path = rng.choice(sorted(each for each in files if fnmatch.fnmatch(Path(each).name, reader.damaged)))
    content = mutated(path, files[path], rng)
    if reader.repair is not None and rng.random() < 0.7:
        # A file may be so damaged that it has no checksum.
        with contextlib.suppress(ValueError, TypeError, AttributeError, LookupError, RecursionError):
            content = reader.repair(content)
    return path, content


def make(reader: Reader, folder: Path) -> dict[str, bytes]:
    """Write the valid files of a reader. Returns their contents by path."""
    quiet(reader.make, folder)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    quiet(reader.read, folder)  # the valid ones are read
    return found


def read_case(reader: Reader, folder: Path, path: str, content: bytes) -> str | None:
    """Read a damaged file. Returns None for a result, the message of an InputError, or raises what is a finding."""
    (folder / path).write_bytes(content)
    try:
        quiet(reader.read, folder)
    except InputError as error:
        check_message(error, reserves=reader.reserves)
        return str(error)
    return None


def check_message(error: InputError, *, reserves: bool) -> None:
    """Refuse a message that no terminal should show, and one that hides that memory ran out."""
    text = str(error)
    assert len(text) <= LONGEST, f"a message of {len(text)} characters: {text[:200]}"
    assert "\n" not in text, f"a message of several lines: {text[:200]!r}"
    cause: BaseException | None = error
    while cause is not None and not reserves:
        out_of_memory = isinstance(cause, MemoryError) or "can't allocate memory" in str(cause)
        assert not out_of_memory, f"memory ran out: {cause!r}"
        cause = cause.__cause__ or cause.__context__


def _resident(field: str) -> int:
    """Bytes of memory of this process, by the name that Linux has for it."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 (quick)
        return next(int(line.split()[1]) for line in status if line.startswith(field)) << 10


def _worked(process: int) -> float:
    """Seconds that a process has used the processor."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _where(error: BaseException) -> str:
    """The last line of our own code, by which findings are told apart."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "kslottery_fast" in frame.filename and "site-packages" not in frame.filename]
    at = (ours or frames)[-1]
    return f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}"


class Worker:
    """Reads the cases of one reader in a forked process, and starts another one after a crash."""

    def __init__(self, name: str, seed: int, first: int, log: Path) -> None:
        self.name, self.seed, self.next, self.log = name, seed, first, log
        self._shared = mmap.mmap(-1, 8 + 2 * _STATE.size)  # which of two states is the last one, and both of them

    def run(self, cases: int, end: float) -> None:
        """Read this many cases, or until the time is over."""
        last = self.next + cases
        while self.next < last and time.monotonic() < end:
            self.put(self.next, time.monotonic() + SECONDS_TO_PREPARE, SECONDS_TO_PREPARE, *self.counts)
            child = os.fork()
            if child == 0:
                self._child(last, end)
            status = self._wait(child)
            case = self.state[0]
            if status is not None:
                self._note(case, status)
            self.next = case + 1

    @property
    def counts(self) -> tuple[int, int]:
        """How many files were read, and how many were refused."""
        return self.state[3:]

    @property
    def state(self) -> tuple[int, float, float, int, int]:
        """The case, when it began, the seconds of the processor until then, and the counts of results and refusals."""
        return _STATE.unpack_from(self._shared, 8 + self._shared[0] * _STATE.size)

    def put(self, case: int, began: float, worked: float, results: int, refusals: int) -> None:
        """Set the state. The other process never sees half of it, nor does a process that ends in the middle."""
        other = 1 - self._shared[0]
        _STATE.pack_into(self._shared, 8 + other * _STATE.size, case, began, worked, results, refusals)
        self._shared[0] = other

    def _wait(self, child: int) -> str | None:
        """What ended the process, if it was not the end of its work."""
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return None if code == 0 else f"crash: {signal.Signals(-code).name if code < 0 else code}"
            late = self._late(child)
            time.sleep(0.05)
            if late and self._late(child):  # the first look may have seen a time of the case before
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "no end"

    def _late(self, child: int) -> bool:
        _, began, worked, _, _ = self.state
        busy, waited = _worked(child) - worked, time.monotonic() - began
        return busy > SECONDS_PER_CASE or waited > 30 * SECONDS_PER_CASE

    def _note(self, case: int, what: str, detail: str = "") -> None:
        record = {"reader": self.name, "seed": self.seed, "case": case, "what": what, "detail": detail}
        with self.log.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _child(self, last: int, end: float) -> None:
        status = 1
        try:
            with prepared(self.name) as (reader, folder, files):
                self._cases(reader, folder, files, last, end)
            status = 0
        except BaseException:
            self._note(self.next, "the driver failed", traceback.format_exc())
        finally:
            os._exit(status)

    def _cases(self, reader: Reader, folder: Path, files: dict[str, bytes], last: int, end: float) -> None:
        for warm in range(WARM):  # what is imported and kept by the first errors
            path, content = damaged_files(reader, files, self.name, -1, warm)
            with contextlib.suppress(BaseException):
                read_case(reader, folder, path, content)
            (folder / path).write_bytes(files[path])
        limit = _resident("VmSize") + SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        results, refusals = self.counts
        for case in range(self.next, last):
            now = time.monotonic()
            if now > end:
                break
            worked = time.process_time()
            self.put(case, now, worked, results, refusals)
            path, content = damaged_files(reader, files, self.name, self.seed, case)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
            before = _resident("VmRSS")
            try:
                refused = read_case(reader, folder, path, content)
                results, refusals = results + (refused is None), refusals + (refused is not None)
                used = _resident("VmHWM") - before
                assert used < MEMORY + 20 * len(content), f"{used / 2**20:.0f} MiB for a file of {len(content)} bytes"
            except BaseException as error:
                self._note(case, _where(error), f"{path}: {error!r}"[:400])
            self.put(case, now, worked, results, refusals)
            (folder / path).write_bytes(files[path])


@contextlib.contextmanager
def prepared(name: str) -> Iterator[tuple[Reader, Path, dict[str, bytes]]]:
    """A reader, and a folder with its valid files."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place) / "files"
        folder.mkdir()
        yield reader, folder, make(reader, folder)


def again(name: str, seed: int, case: int, keep: Path | None) -> int:
    """Read one case in this process, with the traceback."""
    with prepared(name) as (reader, folder, files):
        path, content = damaged_files(reader, files, name, seed, case)
        print(f"{name} case {case}: {path}, {len(content)} bytes, valid {len(files[path])}")
        if keep is not None:
            keep.write_bytes(content)
        refused = read_case(reader, folder, path, content)
        print("read" if refused is None else f"InputError: {refused}")
    return 0


def fuzz(names: list[str], cases: int, seconds: float, seed: int, first: int, log: Path) -> int:
    """Share the time among the readers. Returns the exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    total = Counter[str]()
    began = time.monotonic()
    for at, name in enumerate(names):
        left = seconds - (time.monotonic() - began)
        worker = Worker(name, seed, first, log)
        worker.run(cases, time.monotonic() + left / (len(names) - at))
        results, refusals = worker.counts
        took = time.monotonic() - began - (seconds - left)
        total += Counter({"files": worker.next - first, "results": results, "refusals": refusals})
        print(f"{name}: {worker.next - first} files, {results} read, {refusals} refused, in {took:.1f} s", flush=True)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    kinds: dict[tuple[str, str], list[dict[str, object]]] = {}
    for record in records:
        kinds.setdefault((record["reader"], record["what"]), []).append(record)
    for (name, what), found in kinds.items():
        print(f"FINDING {name}: {what}, {len(found)} files, first case {found[0]['case']}: {found[0]['detail']}")
    print(
        f"{total['files']} damaged files (seed {seed}): {total['results']} read, {total['refusals']} refused, "
        f"{len(records)} findings of {len(kinds)} kinds, in {time.monotonic() - began:.0f} s"
    )
    return 1 if records else 0


def main() -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=1 << 60, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--reader", choices=READERS, action="append", help="instead of all")
    parser.add_argument("--case", type=int, help="read this case again")
    parser.add_argument("--keep", type=Path, help="with --case: write the damaged file here")
    parser.add_argument("--log", type=Path, default=Path("build/fuzz-files.jsonl"), help="file of the findings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # others reserve a large address space
    if options.case is not None:
        return again(options.reader[0], options.seed, options.case, options.keep)
    here = [name for name, each in READERS.items() if all(map(importlib.util.find_spec, each.packages))]
    for name in READERS.keys() - set(here):
        print(f"{name}: left out, it needs {', '.join(READERS[name].packages)}")
    return fuzz(options.reader or here, options.cases, options.seconds, options.seed, options.first, options.log)


if __name__ == "__main__":
    sys.exit(main())

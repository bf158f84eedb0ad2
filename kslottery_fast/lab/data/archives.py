"""Files that came from elsewhere: their sha256, and what a zip archive may do to a folder."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from kslottery_fast.base.errors import InputError


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the wanted members of a zip archive, in order of name. Writes nothing."""
    with _open_zip(archive) as opened:
        for name in sorted(name for name in opened.namelist() if wanted(name)):
            yield name, opened.read(name)


def extract_member(archive: Path, member: str, folder: Path) -> Path:
    """Write one member of a zip archive into ``folder`` under its last name part, and nothing else.

    Raises
    ------
    InputError : no such member, not a zip archive, or an archive with a name that leads out of a folder.
    """
    with _open_zip(archive) as opened:
        if member not in opened.namelist():
            raise InputError(f"{archive} has no member {member}")
        target = folder / PurePosixPath(member).name
        with opened.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


@contextmanager
def _open_zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                    raise InputError(f"{archive} holds the unsafe name {name!r}; the archive is not used")
            yield opened
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive} is not a readable zip archive ({error})") from error

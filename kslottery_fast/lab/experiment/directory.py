"""The directory in which the relative paths of an experiment begin, so that its jobs may start in any other one."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data.corpora import CATALOGUES
from kslottery_fast.lab.models.names import MODELS

_NAMED: Mapping[str, Collection[str]] = {"corpus": CATALOGUES, "model": MODELS}
"""Settings that may be paths, and the names that are none even if a file is called so."""


def directory_entry(settings: Mapping[str, Any]) -> dict[str, str]:
    """The entry ``directory`` of ``run.json``: the current directory, if a relative path in the settings exists there.

    Parameters
    ----------
    settings : mapping
        The settings that bind a folder.

    Returns
    -------
    dict
        Empty if no setting is such a path.
    """
    return {"directory": str(Path.cwd())} if _relative(settings, existing=True) else {}


@contextlib.contextmanager
def in_directory(header: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Work in the directory in which the relative paths of an experiment begin.

    Parameters
    ----------
    header : mapping
        The content of ``run.json``. Without an entry ``directory``, the current directory stays.
    folder : Path
        The folder of the experiment.

    Yields
    ------
    Path
        The folder as it is called from there.

    Raises
    ------
    InputError
        The directory does not exist.
    """
    directory = header.get("directory")
    if directory is None:
        yield folder
        return
    before, place = Path.cwd(), folder.absolute()
    try:
        os.chdir(directory)
    except (OSError, TypeError):
        paths = " and ".join(f"{name} {value!r}" for name, value in _relative(header["settings"]).items())
        raise InputError(
            f"{folder}/run.json says that its relative paths ({paths}) begin in {directory}, which is no directory "
            "here; call the command that began the experiment again in the directory that holds them"
        ) from None
    try:
        yield place
    finally:
        os.chdir(before)


def _relative(settings: Mapping[str, Any], *, existing: bool = False) -> dict[str, str]:
    """The settings that are relative paths: all that may be, or those that exist."""
    found: dict[str, str] = {}
    for name, names in _NAMED.items():
        value = settings.get(name)
        if value and value not in names and not Path(value).expanduser().is_absolute():
            found[name] = value
    return {name: value for name, value in found.items() if not existing or Path(value).exists()}

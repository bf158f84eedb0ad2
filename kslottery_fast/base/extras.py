"""Packages that only a part of ours needs: the extra `lab` of pyproject.toml, and the error where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import InputError

LAB = ("gguf", "jinja2", "matplotlib", "platformdirs", "polib", "rich", "sacrebleu")
"""What the extra `lab` installs, as it is imported."""


def require_lab(what: str, *packages: str) -> None:
    """Stop with one line where packages of the extra `lab`, by default any of them, are not installed.

    >>> require_lab("this doctest", "no_such_package")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: this doctest needs no_such_package; pip install 'kslottery-fast[lab]'
    """
    if missing := [name for name in packages or LAB if find_spec(name) is None]:
        raise InputError(f"{what} needs {', '.join(missing)}; pip install 'kslottery-fast[lab]'")

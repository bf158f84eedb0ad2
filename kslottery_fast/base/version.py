"""The version of the package: pyproject.toml has it, and an installation records it."""

from __future__ import annotations

from importlib import metadata


def installed_version() -> str:
    """The version of what is installed; of a source tree that nobody installed there is none."""
    try:
        return metadata.version("kslottery-fast")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"

"""The version of the package: pyproject.toml has it, and an installation records it."""

from __future__ import annotations

import sys
from importlib import metadata


def installed_version() -> str:
    """The version of what is installed, or of the native library where that is loaded from a tree nobody installed."""
    try:
        return metadata.version("kslottery-fast")
    except metadata.PackageNotFoundError:
        native = sys.modules.get("kslottery_fast._C")
        return str(native.version) if native else "unknown (not installed)"

"""The version of the package. pyproject.toml states it, and an installation records it."""

import sys
from importlib import metadata


def installed_version() -> str:
    """Return the version of the installed package, or of the native library in a source tree that was not installed.

    Examples
    --------
    >>> isinstance(installed_version(), str)
    True
    """
    try:
        return metadata.version("kslottery-fast")
    except metadata.PackageNotFoundError:
        native = sys.modules.get("kslottery_fast._C")
        return str(native.version) if native else "unknown (not installed)"

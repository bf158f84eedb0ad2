"""The packages of the extra `lab`, which only parts of this package need, and the error if they are missing."""

from importlib.util import find_spec

from .errors import InputError

LAB = ("gguf", "jinja2", "matplotlib", "platformdirs", "polib", "rich", "sacrebleu")
"""The packages that the extra `lab` installs, by the names under which they are imported."""


def require_lab(what: str, *packages: str, extra: str = "lab") -> None:
    """Raise an error of one line if packages are not installed.

    Parameters
    ----------
    what : str
        What needs the packages.
    *packages : str
        The packages, as they are imported. By default all of the extra `lab`.
    extra : str
        The extra that installs them.

    Raises
    ------
    InputError
        A package is missing.

    Examples
    --------
    >>> require_lab("this doctest", "no_such_package")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: this doctest needs no_such_package; pip install 'kslottery-fast[lab]'
    """
    if missing := [name for name in packages or LAB if find_spec(name) is None]:
        raise InputError(f"{what} needs {', '.join(missing)}; pip install 'kslottery-fast[{extra}]'")

"""Packages that only parts of this package need, those of the extra `lab` first, and the errors if they are missing."""

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


def require_trainer() -> None:
    """Raise an error of one line if the Trainer of transformers cannot be imported beside marimo.

    In a process that has imported marimo, transformers shows the progress of a training by IPython, which marimo does
    not bring.

    Raises
    ------
    InputError
        IPython is missing.

    Examples
    --------
    >>> require_trainer()
    """
    try:
        import transformers.trainer  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "IPython":
            raise
        raise InputError(
            "the Trainer of transformers, which TicketTrainer is, needs IPython where marimo is imported, to show its "
            "progress; pip install ipython"
        ) from error

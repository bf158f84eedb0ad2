"""The native library, kslottery_fast._C: loading it, and saying what it is.

Where it cannot be loaded the pure-torch kernels of ``reference.py`` take over. That is slow, so it is said
once, with the whole load error; the error stays readable in ``info()``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from types import ModuleType
from typing import Any

import torch

from kslottery_fast.errors import InputError

_MODULE = "kslottery_fast._C"
_DISTRIBUTION = "kslottery-fast"


def _load() -> tuple[ModuleType | None, str | None]:
    """The module or the error, one of the two."""
    try:
        return importlib.import_module(_MODULE), None
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"


_module, _error = _load()
_warned = False


def module() -> ModuleType | None:
    """kslottery_fast._C, or None after one RuntimeWarning per process that says why it is not there."""
    global _warned
    if _module is None and not _warned:
        _warned = True
        warnings.warn(
            "the native library of kslottery-fast could not be loaded; pure-torch kernels are used, which "
            "are many times slower. Build it with `pip install .` or `python setup.py build_ext --inplace`. "
            f"{_error}",
            RuntimeWarning,
            stacklevel=2,
        )
    return _module


def call(native: ModuleType, name: str, *arguments: Any) -> None:
    """Run a native function on torch's number of threads; its ValueError becomes InputError."""
    try:
        getattr(native, name)(*arguments, torch.get_num_threads())
    except ValueError as error:
        raise InputError(str(error)) from None


def info() -> dict[str, Any]:
    """Which kernels are at work, and why not others.

    Returns
    -------
    dict with
        ``native`` : bool, whether the native library is used;
        ``version`` : str, the version it was built as (of the package, without it);
        ``isa`` : str, the instruction set of its KS kernels ("avx512", "avx2", "baseline"), "none" without
        it; ``cuda`` : bool, whether it has CUDA kernels; ``cuda_reason`` : str, why not, "" if it has;
        ``error`` : str or None, the load error in full;
        ``threads`` : int, how many threads a kernel uses: torch.get_num_threads().

    Raises
    ------
    InputError : KSL_ISA in the environment names an instruction set that is unknown or that this CPU lacks.

    Examples
    --------
    >>> sorted(info())
    ['cuda', 'cuda_reason', 'error', 'isa', 'native', 'threads', 'version']
    """
    if _module is None:
        return {
            "native": False,
            "version": installed_version(),
            "isa": "none",
            "cuda": False,
            "cuda_reason": "the native library is not loaded",
            "error": _error,
            "threads": torch.get_num_threads(),
        }
    try:
        isa = _module.active_isa()
    except ValueError as error:
        raise InputError(str(error)) from None
    return {
        "native": True,
        "version": _module.version,
        "isa": isa,
        "cuda": not _module.cuda_reason,
        "cuda_reason": _module.cuda_reason,
        "error": None,
        "threads": torch.get_num_threads(),
    }


def installed_version() -> str:
    """The version of the package: pyproject.toml's, from the installed metadata or from the native library."""
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return _module.version if _module is not None else "unknown (neither installed nor built)"

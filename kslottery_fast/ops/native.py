"""Load the native library, kslottery_fast._C, and report what it is.

If it cannot be loaded, the pure-torch kernels of ``reference.py`` take over. They are slow, so one warning shows the
whole load error. ``info()`` shows the error too.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch

from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.version import installed_version

_MODULE = "kslottery_fast._C"
_CPU = torch.device("cpu")


def _load() -> tuple[ModuleType | None, str | None]:
    """Return the module, or the error that kept it from being loaded."""
    try:
        return importlib.import_module(_MODULE), None
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"


_module, _error = _load()
_warned = False


def module() -> ModuleType | None:
    """Return kslottery_fast._C, or None after one RuntimeWarning per process that tells why it is missing."""
    global _warned
    if _module is None and not _warned:
        _warned = True
        warn_caller(
            "the native library of kslottery-fast could not be loaded; pure-torch kernels are used, which "
            "are many times slower. Build it with `pip install .` or `python setup.py build_ext --inplace`. "
            f"{_error}"
        )
    return _module


def caller(device: torch.device = _CPU) -> Caller | None:
    """Return what calls native functions for tensors on this device: ``caller(device)("ks_decide", *arguments)``.

    On the CPU they run on torch's number of threads. On CUDA they are put on the current stream of the device, and
    nothing waits for them. Their ValueError becomes InputError. If there are no native kernels for the device, the
    result is None, after one RuntimeWarning per process and reason.
    """
    if device.type != "cuda":
        return None if (library := module()) is None else Caller(library, torch.get_num_threads())
    if (library := module()) is None:
        return None
    if reason := library.cuda_reason or _unavailable(library, device.index):
        _warn_of_missing_cuda(reason)
        return None
    kind = Caller if device.index == torch.cuda.current_device() else OtherDeviceCaller
    return kind(library.cuda, device.index, torch.cuda.current_stream(device).cuda_stream)


class Caller:
    """Calls functions of a native module. ``where`` are the last arguments of each call."""

    def __init__(self, native: ModuleType, *where: int) -> None:
        self._native, self._where = native, where

    def offers(self, name: str) -> bool:
        """Tell whether the module has this function. Some exist for one kind of device only."""
        return hasattr(self._native, name)

    def make(self, name: str, **fields: Any) -> Any:
        """Make a struct of the module from its fields."""
        return getattr(self._native, name)(**fields)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a function and return its result."""
        try:
            return getattr(self._native, name)(*arguments, *self._where)
        except ValueError as error:
            raise InputError(str(error)) from None


class OtherDeviceCaller(Caller):
    """Calls functions for a CUDA device that is not torch's current one.

    torch makes the device current and keeps in mind which one was. It does so without a context on that one, which the
    native code cannot.
    """

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a function and return its result."""
        with torch.cuda.device(self._where[0]):
            return super().__call__(name, *arguments)


@functools.cache
def _unavailable(library: ModuleType, device: int) -> str:
    """Tell why this device cannot run the kernels (it or its driver is too old), or "" if it can. Asked only once."""
    with torch.cuda.device(device):
        return str(library.cuda.unavailable(device))


@functools.cache
def _warn_of_missing_cuda(reason: str) -> None:
    warn_caller(
        f"kslottery-fast has no CUDA kernels here ({reason}); pure-torch kernels are used for CUDA tensors, which are "
        "many times slower. Rebuild with KSL_CUDA=on and a CUDA toolkit that the driver supports. If the kernels were "
        "not compiled for this GPU, also set KSL_CUDA_ARCHITECTURES to its architecture, such as 89-real for compute "
        "capability 8.9. The kernels need 8.0 or newer"
    )


@functools.cache
def warn_of_launches(reason: str) -> None:
    """Warn, once per process and reason, that a step of row AdamW could not be the one launch that was asked for.

    Without a reason it was.
    """
    if reason:
        warn_caller(
            f"KSL_CUDA_ADAMW is 'cluster', but {reason}. Steps of this kind take several launches, with the same "
            "results; leave KSL_CUDA_ADAMW unset if all steps are of this kind"
        )


def cuda_reason() -> str:
    """Tell why no CUDA kernels can run in this process, or "" if they can."""
    if _module is None:
        return "the native library is not loaded"
    if _module.cuda_reason:
        return str(_module.cuda_reason)
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    return str(_module.cuda.unavailable())


def info() -> dict[str, Any]:
    """Tell which kernels are used, and why others are not.

    Returns
    -------
    dict
        - ``native``: bool, whether the native library is used.
        - ``version``: str, the version it was built as. Without it, the version of the package.
        - ``isa``: str, the instruction set of its KS kernels ("avx512", "avx2", "baseline"). Without it, "none".
        - ``cuda``: bool, whether CUDA kernels can run.
        - ``cuda_reason``: str, why CUDA kernels cannot run, or "": not built, torch without CUDA, no driver, no device.
        - ``error``: str or None, the load error in full.
        - ``threads``: int, how many threads a kernel uses, which is torch.get_num_threads().

    Raises
    ------
    InputError
        KSL_ISA in the environment names an instruction set that is unknown or that this CPU lacks.

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
            "cuda_reason": cuda_reason(),
            "error": _error,
            "threads": torch.get_num_threads(),
        }
    try:
        isa = _module.active_isa()
    except ValueError as error:
        raise InputError(str(error)) from None
    reason = cuda_reason()
    return {
        "native": True,
        "version": _module.version,
        "isa": isa,
        "cuda": not reason,
        "cuda_reason": reason,
        "error": None,
        "threads": torch.get_num_threads(),
    }

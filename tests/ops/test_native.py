"""Loading the native library: what info() says, and what happens where it is missing."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
import types
import warnings
from pathlib import Path

import pytest
import torch

import kslottery_fast
from kslottery_fast import ops
from kslottery_fast.ops import native

PACKAGE = Path(kslottery_fast.__file__).parent


def run_python(code, *, cwd=None, **environment):
    """The code in a fresh interpreter that finds this package first on its path."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(cwd or PACKAGE.parent), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_info_says_which_kernels_are_active_and_why_there_is_no_cuda():
    info = native.info()
    assert info["native"], info["error"]
    assert info["error"] is None
    assert info["isa"] in {"avx512", "avx2", "baseline"}
    assert info["cuda"] == (info["cuda_reason"] == "")
    assert info["threads"] == torch.get_num_threads()


@pytest.fixture
def two_devices(monkeypatch):
    """A library with CUDA kernels that the first of two devices cannot run; the devices that it was asked about."""
    asked = []

    def unavailable(device):
        asked.append(device)
        return "device 0 of compute capability 7.5 cannot run the kernels" if device == 0 else ""

    kernels = types.SimpleNamespace(unavailable=unavailable, ks_rows=lambda *where: where)
    library = types.ModuleType("library")
    library.cuda_reason, library.cuda = "", kernels
    monkeypatch.setattr(native, "_module", library)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))
    current = [1]

    @contextlib.contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    kernels.ks_decide = lambda *where: torch.cuda.current_device()
    yield asked
    native._warn_of_missing_cuda.cache_clear()
    native._unavailable.cache_clear()


def test_a_device_that_cannot_run_the_kernels_is_asked_and_warned_of_once_and_others_work(two_devices):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [native.caller(torch.device("cuda", 0)) for _ in range(2)] == [None, None]
    (warning,) = caught
    assert re.search(r"compute capability 7\.5 .* pure-torch kernels are used", str(warning.message))
    assert warning.filename == __file__
    advised = re.search(r"KSL_CUDA_ARCHITECTURES .* such as (\d+)-real", str(warning.message))
    assert int(advised[1]) >= 80, "the kernels do not compile for older architectures"
    for _ in range(2):
        assert native.caller(torch.device("cuda", 1))("ks_rows") == (1, 77)
    assert two_devices == [0, 1]


def test_torch_makes_a_device_current_for_the_time_of_a_call(two_devices, monkeypatch):
    # torch alone can restore the previous device without making a context on it.
    device = torch.device("cuda", 2)
    assert native.caller(device)("ks_decide") == 2
    assert torch.cuda.current_device() == 1
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", None)  # not needed where the device is the current one
    assert native.caller(device)("ks_decide") == 2


def test_native_library_is_of_the_version_that_is_imported():
    assert native.info()["version"] == kslottery_fast.__version__


def test_an_unknown_isa_is_an_input_error_in_info_and_in_the_kernels():
    code = """
        import torch
        from kslottery_fast import ops
        from kslottery_fast.base.errors import InputError
        for call in (ops.info, lambda: ops.ks_statistics(torch.zeros(1, 4), torch.zeros(1, 4))):
            try:
                call()
            except InputError as error:
                print(error)
    """
    result = run_python(code, KSL_ISA="sse9")
    assert result.stdout.count("sse9") == 2, result


@pytest.fixture
def package_copy(tmp_path):
    """The package without its native library."""
    shutil.copytree(PACKAGE, tmp_path / "kslottery_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


FALLBACK = """
    import sys, torch, warnings
    # An editable install would find the checkout's native library for the copy of the package.
    sys.meta_path = [f for f in sys.meta_path if getattr(f, "__name__", "") != "_EditableFinder"]
    from kslottery_fast import ops
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            h, flags = ops.ks_statistics(torch.zeros(1, 4), torch.ones(1, 4))
    assert h.item() == 4
    assert [w.category for w in caught] == [RuntimeWarning]
    info = ops.info()
    assert (info["native"], info["isa"], info["cuda"]) == (False, "none", False)
    assert info["error"] in str(caught[0].message)
    print(caught[0].message)
"""


def test_without_the_library_the_reference_works_and_one_warning_says_why(package_copy):
    result = run_python(FALLBACK, cwd=package_copy)
    assert result.returncode == 0, result.stderr
    assert "No module named 'kslottery_fast._C'" in result.stdout
    assert "pip install ." in result.stdout


def test_a_broken_library_shows_its_load_error_in_full(package_copy):
    (package_copy / "kslottery_fast" / "_C.abi3.so").write_bytes(b"not a library")
    result = run_python(FALLBACK, cwd=package_copy)
    assert result.returncode == 0, result.stderr
    assert "ImportError" in result.stdout
    assert "_C.abi3.so" in result.stdout


def test_with_the_library_nothing_is_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.ks_statistics(torch.zeros(1, 4), torch.zeros(1, 4))

"""Artifacts that are written completely or not at all: a temporary file is written and then replaces the target."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .errors import InputError
from .visible import escape_sign

if TYPE_CHECKING:
    import torch  # at run time not: the command line reads and writes JSON before it needs torch


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``. On success it is fsynced and renamed to ``path``.

    On any exception, KeyboardInterrupt included, the temporary file is deleted, and an older ``path`` stays as it was.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _fsync(temporary)
        # mkstemp makes private files. An artifact has the permissions of any file that its owner makes.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary folder in the folder of ``path``. On success it replaces ``path``.

    With ``keep``, a ``path`` that exists by then stays, and the temporary folder is removed. So the first of several
    processes that make the same folder wins.

    POSIX cannot swap two folders in one step. A crash between the two renames leaves no ``path``, but never a partial
    one.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_directory(f"{folder}/a") as temporary:
    ...         _ = Path(temporary, "b.txt").write_text("whole")
    ...     os.listdir(f"{folder}/a")
    ['b.txt']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        # mkdtemp and safetensors make private files. An artifact has the permissions of any file that its owner makes.
        for path_inside in [temporary, *temporary.rglob("*")]:
            path_inside.chmod((0o777 if path_inside.is_dir() else 0o666) & ~_umask())
            _fsync(path_inside)
        if keep:
            try:
                temporary.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        elif target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            target.replace(old / target.name)
            temporary.replace(target)
            shutil.rmtree(old)
        else:
            temporary.replace(target)
        _fsync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | os.PathLike[str], folder: Path, name: str = "output") -> None:
    """Refuse a path whose folder can neither be written nor made. Nothing is left on the disk.

    Parameters
    ----------
    path : str or path
        The path that will be written.
    folder : Path
        The folder that it needs: its parent, or itself.
    name : str
        The name of the path in the error message.

    Raises
    ------
    InputError
        The path cannot be written. The message says why.

    Examples
    --------
    >>> check_writable("a" * 300, Path("."))
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: output aaa... cannot be written in .: File name too long; name another
    """
    try:
        Path(path).exists()  # refuses a name that is too long
        while not folder.exists():
            folder = folder.absolute().parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{name} {path} cannot be written in {folder}: {error.strerror}; name another") from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write ``text`` as UTF-8, whole or not at all.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(f"{folder}/a.txt", "naïve")
    ...     Path(folder, "a.txt").read_bytes()
    b'na\xc3\xafve'
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Raises
    ------
    ValueError
        The value holds NaN or an infinity, which JSON cannot express.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(f"{folder}/a.json", {"alpha": 0.05})
    ...     read_json(f"{folder}/a.json")
    {'alpha': 0.05}
    """
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    r"""Return ``value`` as indented JSON that UTF-8 can hold.

    The bytes of a path that is not UTF-8 become escapes.

    Examples
    --------
    >>> print(json_text({"path": "caf\udce9"}))
    {
      "path": "caf\udce9"
    }
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda found: escape_sign(found[0]), text)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        The file is missing or broken. The message names it.

    Examples
    --------
    >>> read_json("nowhere.json")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: nowhere.json: no such file
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, an absurd number, or nested too deep
        raise InputError(f"{path} is not valid JSON ({error}); restore it or create it again") from None


class Tensors(dict[str, "torch.Tensor"]):
    """The tensors of a safetensors file by name, and its metadata."""

    metadata: dict[str, str]


def read_safetensors(path: str | os.PathLike[str], *, remedy: str = "restore it or create it again") -> Tensors:
    """Read a safetensors file.

    Raises
    ------
    InputError
        The file is missing or damaged. The message names it and, if it is damaged, the ``remedy``.

    Examples
    --------
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_safetensors(f"{folder}/a.safetensors", {"rows": torch.ones(2, 3)}, {"kind": "example"})
    ...     tensors = read_safetensors(f"{folder}/a.safetensors")
    >>> tensors["rows"].shape, tensors.metadata["kind"]
    (torch.Size([2, 3]), 'example')
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = Tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
            tensors.metadata = file.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged ({error}); {remedy}") from None
    return tensors


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all. ``metadata`` gets ``format: pt``, as transformers expects.

    :func:`read_safetensors` has an example.
    """
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(contiguous, temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            # The library hides the errno. A full disk has to look like one.
            if f"os error {errno.ENOSPC}" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

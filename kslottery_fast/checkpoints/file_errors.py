"""Errors about files that cannot be read: which file it is, what is wrong with it, and what to do."""

from pathlib import Path

import safetensors

from kslottery_fast.base.errors import InputError

from .hub_address import FORMS

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
AGAIN = "copy or download it again"
_SHOWN = 300  # characters of a path that the system refuses


def exists(path: Path) -> bool:
    """Tell whether there is such a file or folder. A name that the system cannot take is an InputError."""
    try:
        return path.exists()
    except OSError as error:
        text = str(path) if len(str(path)) < _SHOWN else f"{str(path)[:_SHOWN]}..."
        raise InputError(f"{text} cannot be read: {error.strerror}") from None


def nothing(path: Path, name: str) -> InputError:
    """There is nothing at this path, and it is no address on the Hub either."""
    if path.is_symlink():
        return dangling(path)
    return InputError(
        f"{name} is {path}: no such file or folder, and no repository of the Hugging Face Hub, which is {FORMS}"
    )


def dangling(path: Path) -> InputError:
    """The path is a symbolic link to nothing."""
    return InputError(f"{path} is a symbolic link to {path.readlink()}, which does not exist; {AGAIN}")


def unreadable(path: Path, error: OSError | MemoryError) -> InputError:
    """The system refuses to read the file."""
    return InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def changed(path: Path) -> InputError:
    """The file is no longer the one whose header was read."""
    return InputError(f"{path} changed while it was read: another program is writing it; try again")


def damaged(path: Path, reason: str) -> InputError:
    """The safetensors library refuses the file and says why."""
    if "unknown variant `" in reason:  # the only names that the format lists are those of dtypes
        dtype = reason.split("`")[1]
        return InputError(
            f"{path} holds a tensor of dtype {dtype}, which safetensors {safetensors.__version__} does not know: "
            "upgrade safetensors"
        )
    return InputError(f"{path} is cut short or damaged ({reason}); {AGAIN}")


def pickled(path: Path, what: str = "") -> InputError:
    """The file is a pickle of more than tensors, or it has the name of another format."""
    held = f" of {what}" if what else ""
    return InputError(
        f"{path} is a pickle{held}, which can run code when it is read, so it is not read here; only tensors in a file "
        f"named .bin, .pt or .pth are. If you trust it, convert it: "
        f"AutoModelForCausalLM.from_pretrained({str(path.parent)!r}).save_pretrained(NEW_FOLDER) writes safetensors"
    )


def foreign_pickle(path: Path, reason: str) -> InputError:
    """Torch cannot read the file, and not because of what it would run."""
    return InputError(f"{path} is cut short, damaged or no PyTorch file ({reason}); {AGAIN}")


def gguf(path: Path) -> InputError:
    """The file is a GGUF file."""
    return InputError(f"{path} is a GGUF file whose name says otherwise: rename it, so that its name ends in .gguf")


def foreign(path: Path, start: bytes) -> InputError:
    """The file is not a safetensors file, as its first bytes say."""
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        return pickled(path)
    if start.startswith(b"GGUF"):
        return gguf(path)
    if start == b"version ":
        return InputError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")
    if len(start) < 8:
        return InputError(f"{path} is cut short: it has {len(start)} bytes; {AGAIN}")
    return InputError(f"{path} is not a safetensors file; expected one, the index of a sharded checkpoint, or a folder")

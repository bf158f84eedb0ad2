"""The name of :mod:`kslottery_fast.base.files` in version 0.1, for programs that import it."""

from kslottery_fast.base.files import (
    atomic_directory,
    atomic_path,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
    write_text,
)

__all__ = [
    "atomic_directory",
    "atomic_path",
    "read_json",
    "read_safetensors",
    "write_json",
    "write_safetensors",
    "write_text",
]

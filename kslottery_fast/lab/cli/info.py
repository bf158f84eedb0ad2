"""``kslottery info``: explains a file or folder, or this installation."""

import argparse
import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

from .options import add_command, add_results, place, print_json


def add_info(commands: Any) -> None:
    """Add ``info``."""
    parser = add_command(
        commands,
        "info",
        _info,
        "explain a file or folder, or this installation",
        "The command explains every file and folder that a command writes, and a model folder. Without\n"
        "PATH, prints the versions of this installation and which kernels it uses.",
        ["info runs/es", "info tickets.json", "info"],
        "[PATH]",
    )
    parser.add_argument("path", nargs="?", type=place, metavar="PATH", help="file or folder")
    add_results(parser)


def describe_installation() -> dict[str, Any]:
    """The versions of this installation, and which kernels it uses and why.

    Examples
    --------
    >>> describe_installation()["native_core"]
    'loaded'
    """
    import torch

    from kslottery_fast.ops import native

    kernels = native.info()
    return {
        "kslottery_fast": kernels["version"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "peft": metadata.version("peft") if importlib.util.find_spec("peft") else None,
        "native_core": "loaded" if kernels["native"] else f"not loaded, so the kernels are torch's: {kernels['error']}",
        "cpu_kernels": kernels["isa"],
        "threads": kernels["threads"],
        "cores": os.cpu_count(),
        "cuda_kernels": "yes" if kernels["cuda"] else f"no: {kernels['cuda_reason']}",
        "cuda_devices": torch.cuda.device_count(),
    }


def _info(options: argparse.Namespace) -> int:
    if options.path is None:
        facts = describe_installation()
    else:
        from .explain import describe

        facts = describe(options.path)
    if options.json:
        print_json(facts)
    else:
        print("\n".join(_lines(facts)))
    return 0


def _lines(facts: dict[str, Any], indent: str = "", *, named: bool = True) -> list[str]:
    """One line for each fact. ``named``: an underscore in a key stands for a space."""
    keys = {key: str(key).replace("_", " ") if named else str(key) for key in facts}
    width = max(map(len, keys.values()), default=0)
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{keys[key]}", *_lines(value, f"{indent}  ", named=False)]
        else:
            lines.append(f"{indent}{keys[key]:{width}}  {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return repr(value) if isinstance(value, str) and "\n" in value else str(value)

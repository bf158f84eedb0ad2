"""Runs a command line of kslottery again and again, killed with SIGKILL as it is about to show a product.

Every attempt is a fork of this process, so that transformers is imported once. Writes "killed at NAME" to stderr for
each, and ends with the exit code of a last attempt, which is not killed. Usage: kill_products.py NAMES ARGUMENTS
"""

import os
import signal
import sys
from pathlib import Path

import torch

from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.models import loading  # noqa: F401 (imported once, before the forks)
from kslottery_fast.lab.report import page, products  # noqa: F401


def attempt(arguments: list[str], name: str) -> int:
    """The wait status of a child that kills itself before the rename that makes the file ``name``."""
    pid = os.fork()
    if pid == 0:
        replace = Path.replace

        def killing(self: Path, target: Path) -> Path:
            if Path(target).name == name:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = killing
        os._exit(cli.main(arguments))
    return os.waitpid(pid, 0)[1]


def main() -> None:
    """One attempt for each name, and one to the end."""
    torch.set_num_threads(1)
    for name in sys.argv[1].split(","):
        if os.WIFSIGNALED(attempt(sys.argv[2:], name)):
            print(f"killed at {name}", file=sys.stderr)
    sys.exit(cli.main(sys.argv[2:]))


if __name__ == "__main__":
    main()

"""Runs a command line of kslottery again and again; every attempt finishes one stage and is killed in the next.

Killed with SIGKILL in turn at the stage's first report of progress, and after it wrote all its files and before they
count. Every attempt is a fork of this process, so that
transformers is imported once. Writes "killed" to stderr for each. Usage: kill_each_stage.py ARGUMENTS
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.experiment import training  # noqa: F401
from kslottery_fast.lab.experiment.run_folder import RunFolder
from kslottery_fast.lab.models import loading  # noqa: F401 (imported once, before the forks)
from kslottery_fast.lab.report import page, products  # noqa: F401


def attempt(arguments: list[str], finish: int, early: bool) -> int:
    """The wait status of a child that finishes ``finish`` stages and kills itself in the next, if there is one."""
    pid = os.fork()
    if pid == 0:
        write_stage, started = RunFolder.write_stage, 0

        @contextlib.contextmanager
        def killing(self: RunFolder, stage: str, *rest: Any) -> Iterator[Path]:
            nonlocal started
            started += 1
            with write_stage(self, stage, *rest) as folder:
                if early and started > finish:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield folder
                if started > finish:
                    os.kill(os.getpid(), signal.SIGKILL)

        RunFolder.write_stage = killing
        os._exit(cli.main(arguments))
    return os.waitpid(pid, 0)[1]


def main() -> None:
    """End with the exit code of the attempt that was not killed."""
    torch.set_num_threads(1)
    for number in range(1000):
        status = attempt(sys.argv[1:], min(number, 1), early=bool(number % 2))
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        print("killed", file=sys.stderr)


if __name__ == "__main__":
    main()

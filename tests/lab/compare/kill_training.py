"""Runs a command line of kslottery three times; the first training is killed with SIGKILL at its steps 3 and 5.

Checkpoints are made at every other step. Every attempt is a fork of this process, so that transformers is imported
once. Writes "killed at STEP, begun at STEP" to stderr for each, and ends with the exit code of the attempt that was not
killed. Usage: kill_training.py ARGUMENTS
"""

import os
import signal
import sys
from typing import Any

import torch

from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.experiment import checkpoints, training
from kslottery_fast.lab.models import loading  # noqa: F401 (imported once, before the forks)
from kslottery_fast.lab.report import page, products  # noqa: F401


def attempt(arguments: list[str], victim: int | None) -> int:
    """The wait status of a child that kills itself at the step ``victim`` of a training."""
    pid = os.fork()
    if pid == 0:
        on_log, begun = training._Watch.on_log, []

        def killing(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
            begun.append(state.global_step)
            on_log(self, args, state, control, **rest)
            if state.global_step == victim:
                print(f"killed at {victim}, begun at {begun[0]}", file=sys.stderr)
                os.kill(os.getpid(), signal.SIGKILL)

        training._Watch.on_log = killing
        os._exit(cli.main(arguments))
    return os.waitpid(pid, 0)[1]


def main() -> None:
    """Two attempts that are killed, and one to the end."""
    torch.set_num_threads(1)
    checkpoints.STEPS, checkpoints.SECONDS = 2, 0.0
    for victim in (3, 5):
        if not os.WIFSIGNALED(attempt(sys.argv[1:], victim)):
            sys.exit(f"the attempt that should end at step {victim} did not")
    sys.exit(os.waitstatus_to_exitcode(attempt(sys.argv[1:], None)))


if __name__ == "__main__":
    main()

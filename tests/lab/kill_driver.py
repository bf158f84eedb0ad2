"""Runs ``kslottery run`` with given arguments again and again, killed with SIGKILL at the end of every stage in turn.

A stage is killed after it wrote all its files and before they count: the worst moment. Every attempt is a fork of this
process, so that torch and transformers are imported once. Usage: kill_driver.py ARGUMENTS OF KSLOTTERY
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from kslottery_fast.lab import cli, pipeline, results
from kslottery_fast.lab.run_folder import RunFolder


def attempt(arguments: list[str], victim: str | None) -> int:
    """The wait status of a child that runs the command line and kills itself in the stage ``victim``."""
    pid = os.fork()
    if pid == 0:
        write_stage = RunFolder.write_stage

        @contextlib.contextmanager
        def killing(self: RunFolder, stage: str) -> Iterator[Path]:
            with write_stage(self, stage) as folder:
                yield folder
                if stage == victim:
                    os.kill(os.getpid(), signal.SIGKILL)

        def killing_report(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        RunFolder.write_stage = killing
        if victim == "results":
            results.write_report = killing_report
        os._exit(cli.main(["run", *arguments]))
    return os.waitpid(pid, 0)[1]


def main() -> None:
    """Kill every stage once, then let the run end; exit code 1 where a child did not end as it should."""
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    for victim in [*(name for name, _ in pipeline.STAGES), "results"]:
        status = attempt(arguments, victim)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{victim}: expected SIGKILL, got wait status {status}")
    sys.exit(os.waitstatus_to_exitcode(attempt(arguments, None)))


if __name__ == "__main__":
    main()

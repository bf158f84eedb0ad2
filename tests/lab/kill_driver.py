"""Runs ``kslottery run`` with given arguments again and again, killed with SIGKILL in every stage, twice.

First in the middle of its work, at its first report of progress; then after it wrote all its files and before they
count. Every attempt is a fork of this process, so that torch and transformers are imported once. Usage: kill_driver.py
ARGUMENTS OF KSLOTTERY
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.lab.cli.main import main as cli
from kslottery_fast.lab.experiment import pipeline
from kslottery_fast.lab.experiment.console import ProgressCallback, RunConsole
from kslottery_fast.lab.experiment.run_folder import RunFolder
from kslottery_fast.lab.report import results


def attempt(arguments: list[str], victim: str | None, early: bool = False) -> int:
    """The wait status of a child that runs the command line and kills itself in the stage ``victim``."""
    pid = os.fork()
    if pid == 0:
        write_stage = RunFolder.write_stage

        @contextlib.contextmanager
        def killing(self: RunFolder, stage: str, *rest: Any) -> Iterator[Path]:
            with write_stage(self, stage, *rest) as folder:
                if early and stage == victim:
                    RunConsole.task = killing_task
                yield folder
                if stage == victim:
                    os.kill(os.getpid(), signal.SIGKILL)

        @contextlib.contextmanager
        def killing_task(*_: object) -> Iterator[ProgressCallback]:
            yield lambda *_: os.kill(os.getpid(), signal.SIGKILL)

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
        for early in (True, False) if victim != "results" else (False,):
            status = attempt(arguments, victim, early)
            check(victim, status)
    sys.exit(os.waitstatus_to_exitcode(attempt(arguments, None)))


def check(victim: str, status: int) -> None:
    """End with exit code 1 unless the child was killed."""
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        sys.exit(f"{victim}: expected SIGKILL, got wait status {status}")


if __name__ == "__main__":
    main()

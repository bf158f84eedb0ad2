"""The command line: ``kslottery run``, ``report``, ``compare``, ``certify``, ``select``, ``scan`` and ``info``.

Exit codes: 0 done, 2 bad input (one line on stderr says what and how to mend it), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_lab
from kslottery_fast.base.version import installed_version

from .checkpoints import add_scan, add_select
from .experiments import add_certify, add_compare, add_report, add_run
from .info import add_info


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _Parser(prog="kslottery", description="Find the few token embeddings that fine-tuning really needs.")
    version = f"%(prog)s-fast {installed_version()}"
    parser.add_argument("--version", action="version", version=version, help="print the version and end")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_run, add_report, add_compare, add_certify, add_select, add_scan, add_info):
        add(commands)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.command = shlex.join(["kslottery", *arguments])
    try:
        require_lab("the command line")
        return int(options.run(options))
    except InputError as error:
        # One line, whatever a library's message looks like inside.
        print(f"kslottery: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"kslottery: interrupted{getattr(options, 'after_interrupt', '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, e.g. `| head`. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    """Errors of the command line look like all others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"kslottery: error: {message}; see {self.prog} --help\n")

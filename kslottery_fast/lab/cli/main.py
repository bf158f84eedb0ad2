"""The command line: ``kslottery run``, ``report``, ``compare``, ``certify``, ``select``, ``scan`` and ``info``.

Exit codes: 0 done, 2 bad input (one line on stderr says what and how to mend it), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_lab

from . import certify, compare, report, run, scan, select


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kslottery", description="Find the few token embeddings that fine-tuning really needs.")
    version = f"%(prog)s-fast {metadata.version('kslottery-fast')}"
    parser.add_argument("--version", action="version", version=version, help="print the version and end")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    for command in (run, report, compare, certify, select, scan):
        command.add_parser(commands)
    info = commands.add_parser("info", help="explain any file that a run writes, or, without PATH, this installation")
    info.add_argument("path", nargs="?", type=Path, metavar="PATH", help="run folder, artifact or adapter")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)
    return parser


class _Parser(argparse.ArgumentParser):
    """Errors of the command line look like all others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"kslottery: error: {message}; see {self.prog} --help\n")


def _info(options: argparse.Namespace) -> int:
    from .info import describe, describe_installation

    facts = describe_installation() if options.path is None else describe(options.path)
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

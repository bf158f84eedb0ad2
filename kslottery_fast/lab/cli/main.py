# PYTHON_ARGCOMPLETE_OK
"""The command line: ``kslottery select``, ``scan``, ``drift``, ``run``, ``compare``, ``job``, ``report``, and others.

Exit codes: 0 for success, 2 for bad input (one line on stderr says what is wrong and what to do), 130 if interrupted,
3 for drift that ``drift`` found, and 75 for a job that cannot be done yet.
"""

import os
import shlex
import sys
from collections.abc import Sequence

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.extras import require_lab
from kslottery_fast.base.version import installed_version

from .certificates import add_certify
from .checkpoints import add_scan, add_select
from .drift import add_drift
from .experiments import add_compare, add_report, add_run
from .info import add_info
from .jobs import add_job
from .options import COMMAND, Parser

_DESCRIPTION = """\
Train, swap or compare a few token-embedding rows of a language model.

The KS test compares each row of the embedding table before and after a
fine-tuning. Rows that differ significantly are called tickets."""

_EPILOG = """\
Results go to stdout and progress goes to stderr. Exit codes: 0 for success,
2 for bad input, 3 for drift that `drift` found, 130 if interrupted.

Shell completion needs the package argcomplete. For bash and zsh:
  pip install argcomplete
  eval "$(register-python-argcomplete kslottery)"    # in ~/.bashrc or ~/.zshrc

examples:
  kslottery select BEFORE AFTER               # tickets of two model folders
  kslottery run --output runs/es --target es  # the whole experiment
  kslottery info runs/es                      # what a file or folder is"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments, by default those of the process.

    Returns
    -------
    int
        The exit code.

    Examples
    --------
    >>> main(["compare", "--list-arms"])
    untuned                  Untuned. The original model.
    ...
    """
    chosen = parser()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell that asks for completions
        import argcomplete

        argcomplete.autocomplete(chosen)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are not UTF-8
    arguments = sys.argv[1:] if arguments is None else arguments
    options, unknown = chosen.parse_known_args(arguments)
    if unknown:
        options.parser.refuse(unknown)
    if options.run is None:
        chosen.print_help()
        return 0
    options.command = shlex.join(["kslottery", *arguments])
    try:
        require_lab("the command line")
        return int(options.run(options))
    except InputError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print(f"kslottery: interrupted{getattr(options, 'after_interrupt', '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone, as with `| head`. Without this Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.strerror is None:  # not from the system
            raise
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)


def parser() -> Parser:
    """The parser of the whole command line.

    Examples
    --------
    >>> parser().parse_args(["info", "runs/es"]).json
    False
    """
    made = Parser(prog="kslottery", description=_DESCRIPTION, epilog=_EPILOG)
    version = f"%(prog)s-fast {installed_version()}"
    made.add_argument("--version", action="version", version=version, help="print the version and exit")
    made.set_defaults(run=None, parser=made)
    commands = made.add_subparsers(title="commands", metavar=COMMAND)
    for add in (add_select, add_scan, add_drift, add_run, add_compare, add_job, add_report, add_certify, add_info):
        add(commands)
    return made


def _failed(message: str) -> int:
    """Print an error as one line, whatever the message of a library looks like."""
    print(f"kslottery: error: {' '.join(message.split())}", file=sys.stderr)
    return 2

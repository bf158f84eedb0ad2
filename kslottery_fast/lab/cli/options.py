"""What all commands share: the parser, the format of its help, and the options that mean the same everywhere."""

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import json_text

COMMAND = "COMMAND"  # what the help calls the name of a subcommand
AS_JSON = "print one JSON object to stdout instead of text"


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of every option that has one, and keeps the line breaks of descriptions and examples."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 32, **options})

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, str) and "\n" in action.default:
            return f"{action.help} (default: %(default)r)"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are one line and exit code 2."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, "formatter_class": Help, **options})
        self._given: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Keep the arguments, so that an error can say which of them is unknown."""
        self._given = tuple(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line that points to the help of this command, and exit."""
        unknown = [word for word in self._given if word.startswith("--") and not self._known(word)]
        if unknown and "are required" in message:  # a misspelt option also takes the place of an argument
            self._given = ()
            self.refuse(unknown)
        self.exit(2, f"kslottery: error: {message}; see {self.prog} --help\n")

    def _known(self, word: str) -> bool:
        return word == "--" or word.partition("=")[0] in self._option_string_actions

    def _check_value(self, action: Any, value: Any) -> None:
        """Name the nearest command for an unknown one."""
        if action.metavar == COMMAND and value not in action.choices:
            near = difflib.get_close_matches(value, action.choices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(action.choices)}"
            self.error(f"unknown command {value!r} ({hint})")
        super()._check_value(action, value)

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Say which arguments this command does not know, and suggest the nearest option."""
        unknown = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if unknown is None:
            self.error(f"unexpected argument {words[0]!r}")
        actions = self._option_string_actions.items()
        known = {option.lstrip("-"): option for option, action in actions if action.help != argparse.SUPPRESS}
        if unknown in known.values():  # it stood before the command
            self.error(f"option {unknown} comes after the command: {self.prog} {unknown}")
        near = difflib.get_close_matches(unknown.lstrip("-"), known, n=1)
        self.error(f"unknown option {unknown}" + (f" (did you mean {known[near[0]]}?)" if near else ""))


class Renamed(argparse.Action):
    """An option under its name in version 0.1. It works, is not in the help, and says what it is called now."""

    def __init__(self, *, now: str, **options: Any) -> None:
        super().__init__(**{"default": argparse.SUPPRESS, "help": argparse.SUPPRESS, **options})
        self.now = now

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store the value, and note the new name."""
        print(f"kslottery: note: {option_string} is now called {self.now}", file=sys.stderr)
        setattr(namespace, self.dest, values)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    purpose: str,
    text: str,
    examples: Sequence[str],
    *places: str,
) -> Parser:
    """Add a subcommand.

    Parameters
    ----------
    commands : result of ``add_subparsers``
        Where to add it.
    name : str
        Its name.
    run : callable(options)
        Does the work and returns the exit code.
    purpose : str
        One line for the list of commands.
    text : str
        More lines for its own help.
    examples : sequence of str
        Command lines for the end of its help.
    *places : str
        Its arguments that are not options.
    """
    epilog = "\n".join([f"example{'s' if len(examples) > 1 else ''}:", *(f"  kslottery {line}" for line in examples)])
    description = f"{purpose[0].upper()}{purpose[1:]}.\n\n{text}"
    usage = " ".join(["%(prog)s [options]", *places])
    parser: Parser = commands.add_parser(name, help=purpose, usage=usage, description=description, epilog=epilog)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_results(parser: argparse.ArgumentParser, group: Any = None, *, as_json: str = AS_JSON) -> Any:
    """Add ``--json`` and ``--quiet`` to a group, by default a new one, and return it."""
    group = group or parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help=as_json)
    group.add_argument("-q", "--quiet", action="store_true", help="leave out progress; notes and errors still appear")
    return group


def add_force(group: Any, text: str) -> None:
    """Add ``--force``."""
    group.add_argument("--force", action="store_true", help=text)


def print_json(value: Any) -> None:
    """Print a JSON object to stdout."""
    print(json_text(value))


def refuse_existing(paths: Sequence[Path], *, force: bool) -> None:
    """Raise InputError if a file exists that would be overwritten without ``--force``."""
    taken = [str(path) for path in paths if path.exists()]
    if taken and not force:
        what = f"{taken[0]} exists" if len(taken) == 1 else f"{', '.join(taken)} exist"
        raise InputError(f"{what}; give another --output, or --force to overwrite")


def probability(text: str) -> float:
    """Read a number between 0 and 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1, such as 0.05")
    return value


def below_one(text: str) -> float:
    """Read a number of at least 0 and below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0 and below 1, such as 0.999")
    return value


def positive(text: str) -> float:
    """Read a positive number."""
    value = _number(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number such as 1e-2")
    return value


def rows(text: str) -> int | str:
    """Read the number of rows of a run, as the size of its arms."""
    if text in ("alpha", "enough"):
        return "tickets" if text == "alpha" else text
    try:
        return at_least(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of rows of at least 1, 'alpha' or 'enough'"
        ) from None


def place(text: str) -> Path:
    """Read a path. An empty text, such as a shell variable that is not set, is not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def checkpoint(text: str) -> str | Path:
    """Read the place of a checkpoint: an address on the Hugging Face Hub stays text, anything else is a path."""
    from kslottery_fast.checkpoints.hub_address import hub_address

    return place(text) if hub_address(text) is None else text


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a function that reads an integer of at least ``least``, and at most ``most``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"{text} is not an integer of at least {least}" + (f" and at most {most}" if most is not None else "")
            )
        return value

    return read


def workers(text: str) -> int | None:
    """Read a number of processes, or ``auto``, which is None."""
    return None if text == "auto" else at_least(1)(text)


seed = at_least(0, 2**32 - 1)
"""Reads a random seed."""


def seeds(text: str) -> tuple[int, ...]:
    """Read random seeds with commas between them."""
    return tuple(map(seed, words(text)))


def words(text: str) -> tuple[str, ...]:
    """Read words with commas between them."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise argparse.ArgumentTypeError("expected at least one word")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None

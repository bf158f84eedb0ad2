"""``kslottery select BEFORE AFTER``: the winning tickets of two checkpoints, as a table and as a file."""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.errors import InputError

if TYPE_CHECKING:
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.tickets.tickets import Tickets

_CHECKPOINT = "a .safetensors file, the .index.json of a sharded checkpoint, or a model folder"


def add_parser(commands: Any) -> None:
    """Add ``select`` to the subcommands of ``kslottery``."""
    parser = pair_parser(commands, run, "select", "the winning tickets of two checkpoints on disk, read block by block")
    parser.add_argument(
        "--tensor", default="auto", metavar="NAME[,NAME]", help="the table; two names where AFTER calls it differently"
    )
    parser.add_argument("--correction", choices=("bonferroni", "bh"), help="for testing many rows")
    parser.add_argument("--top-k", type=int, help="the rows with the largest D, instead of a threshold")
    parser.add_argument("--output", type=Path, default=Path("tickets.json"), metavar="FILE", help="where tickets go")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="for the texts of tokens; by default AFTER's own")
    parser.add_argument("--limit", type=int, default=20, help="tickets in the table")
    parser.add_argument("--json", action="store_true", help="print the tickets file instead of the table")


def pair_parser(commands: Any, run: Callable[..., int], name: str, purpose: str) -> argparse.ArgumentParser:
    """A subcommand on two checkpoints, with the arguments that ``select`` and ``scan`` share."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=purpose, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help=f"the original model: {_CHECKPOINT}")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the tuned model, likewise")
    parser.add_argument("--alpha", type=float, default=0.05, help="significance level of the KS test")
    parser.add_argument("--method", default="auto", help="p-values: auto, exact, asymp, or the paper's threshold")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> int:
    """Select, write the tickets, show them."""
    if options.limit < 0:
        raise InputError(f"--limit is {options.limit}: expected a number of rows")
    names = options.tensor.split(",")
    if len(names) > 2 or not all(names):
        raise InputError(
            f"--tensor is {options.tensor!r}: expected one name, or two with a comma between them and no space"
        )
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.tickets.stored import ks_select_checkpoints
    from kslottery_fast.tickets.tickets import Tickets

    _check_output(options.output)
    console = RunConsole()
    tokenizer = None if options.tokenizer is None else _load_tokenizer(options.tokenizer)
    chosen = {name: getattr(options, name) for name in ("alpha", "method", "correction", "top_k")}
    with warnings.catch_warnings(record=True) as notes, console.task("Comparing rows") as progress:
        warnings.simplefilter("always", RuntimeWarning)
        tensor = names[0] if len(names) == 1 else (names[0], names[1])
        tickets = ks_select_checkpoints(options.before, options.after, tensor=tensor, progress=progress, **chosen)
    for note in notes:
        console.say(f"note: {note.message}")
    tickets.save(options.output, _own_tokenizer(options, tickets, console) if tokenizer is None else tokenizer)
    if options.json:
        print(options.output.read_text(encoding="utf-8"), end="")
    else:
        _show(Tickets.load(options.output), options.limit, options.output)
    return 0


def check_writable(output: Path, folder: Path) -> None:
    """Refuse an --output whose folder can neither be written nor made, without leaving anything behind."""
    try:
        output.exists()  # refuses a name that is too long
        while not folder.exists():
            folder = folder.absolute().parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--output {output} cannot be written in {folder}: {error.strerror}; name another") from None


def _check_output(path: Path) -> None:
    """Refuse what cannot be written, and to replace what is no tickets file, before any work."""
    from kslottery_fast.tickets.tickets import Tickets

    check_writable(path, path.parent)
    if path.is_dir():
        raise InputError(f"--output {path} is a folder: expected a file to write, such as {path / 'tickets.json'}")
    if path.exists():
        try:
            Tickets.load(path)
        except InputError as error:
            raise InputError(f"--output would replace a file that holds no tickets; name another ({error})") from None


def _holds_tokenizer(folder: Path) -> bool:
    # transformers would look for the name of a folder without any of these on the hub.
    return any(any(folder.glob(names)) for names in ("tokenizer*", "vocab.*", "spiece.model"))


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, from its own files and without running code of it."""
    import transformers

    from kslottery_fast.lab.models.sources import quiet_transformers

    if not _holds_tokenizer(folder):
        raise InputError(f"{folder} holds no tokenizer: expected a folder as save_pretrained writes it")
    try:
        with quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what transformers raises for damaged files depends on the kind of tokenizer
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def _own_tokenizer(options: argparse.Namespace, tickets: Tickets, console: RunConsole) -> Any:
    """The tokenizer beside AFTER, else beside BEFORE, if there is one that fits."""
    folders = (path if path.is_dir() else path.parent for path in (options.after, options.before))
    folder = next(filter(_holds_tokenizer, folders), None)
    if folder is None:
        return None
    try:
        tokenizer = _load_tokenizer(folder)
        tickets.tokens(tokenizer)
    except InputError as error:
        console.say(f"note: token ids without their texts: {error}")
        return None
    return tokenizer


def _show(tickets: Tickets, limit: int, path: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kslottery_fast.lab.report.words import visible_token

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("rank", "token id", *(["token"] if tickets.token_texts else []), "D", "p"):
        table.add_column(heading, justify="left" if heading == "token" else "right")
    columns = [column[:limit].tolist() for column in (tickets.token_ids, tickets.statistic, tickets.log_pvalue)]
    for row, (token, d, log_p) in enumerate(zip(*columns, strict=True)):
        text = [Text(visible_token(tickets.token_texts[row]))] if tickets.token_texts else []
        table.add_row(str(row + 1), str(token), *text, f"{d:.4f}", pvalue_of_log(log_p))
    console.print(tickets.summary(), markup=False, soft_wrap=True)
    if table.rows:
        console.print(table)
    if len(tickets) > limit:
        console.print(f"... and {len(tickets) - limit:,} more (--limit)", markup=False)
    console.print(f"Written to {path}", markup=False, soft_wrap=True)


def pvalue_of_log(log_p: float) -> str:
    """A p-value from its natural logarithm: two digits, also below the smallest float.

    >>> pvalue_of_log(math.log(0.0312)), pvalue_of_log(0.0), pvalue_of_log(-5672.837)
    ('0.031', '1', '2.1e-2464')
    """
    p = Decimal(log_p).exp()
    return f"{p:.1e}" if log_p < math.log(1e-4) else f"{float(p):.2g}"

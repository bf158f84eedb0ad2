"""``kslottery select BEFORE AFTER``: the winning tickets of two checkpoints, as a table and as a file."""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.console import RunConsole
from kslottery_fast.lab.report.words import visible_token
from kslottery_fast.tickets.stored import ks_select_checkpoints
from kslottery_fast.tickets.tickets import Tickets

_CHECKPOINT = "a .safetensors file, the .index.json of a sharded checkpoint, or a model folder"
# What transformers needs at least one of; without any it would look for the folder's name on the hub.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def add_parser(commands: Any) -> None:
    """Add ``select`` to the subcommands of ``kslottery``."""
    parser = commands.add_parser(
        "select",
        help="the winning tickets of two checkpoints on disk, read block by block",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_pair(parser)
    parser.add_argument(
        "--tensor", default="auto", metavar="NAME[,NAME]", help="the table; two names where AFTER calls it differently"
    )
    parser.add_argument("--correction", choices=("bonferroni", "bh"), help="for testing many rows")
    parser.add_argument("--top-k", type=int, help="the rows with the largest D, instead of a threshold")
    parser.add_argument("--output", type=Path, default=Path("tickets.json"), metavar="FILE", help="where tickets go")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="for the texts of tokens; by default AFTER's own")
    parser.add_argument("--limit", type=int, default=20, help="tickets in the table")
    parser.add_argument("--json", action="store_true", help="print the tickets file instead of the table")
    parser.set_defaults(run=run)


def add_pair(parser: argparse.ArgumentParser) -> None:
    """The arguments that ``select`` and ``scan`` share."""
    parser.add_argument("before", type=Path, metavar="BEFORE", help=f"the original model: {_CHECKPOINT}")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the tuned model, likewise")
    parser.add_argument("--alpha", type=float, default=0.05, help="significance level of the KS test")
    parser.add_argument("--method", default="auto", help="p-values: auto, exact, asymp, or the paper's threshold")


def run(options: argparse.Namespace) -> int:
    """Select, write the tickets, show them."""
    if options.limit < 0:
        raise InputError(f"--limit is {options.limit}: expected a number of rows")
    names = _tensor_names(options.tensor)
    _check_output(options.output)
    console = RunConsole()
    tokenizer = None if options.tokenizer is None else _load_tokenizer(options.tokenizer)
    with warnings.catch_warnings(record=True) as notes, console.task("Comparing rows") as progress:
        warnings.simplefilter("always", RuntimeWarning)
        tickets = ks_select_checkpoints(
            options.before,
            options.after,
            tensor=names,
            alpha=options.alpha,
            method=options.method,
            correction=options.correction,
            top_k=options.top_k,
            progress=progress,
        )
    for note in notes:
        console.say(f"note: {note.message}")
    if tokenizer is None:
        tokenizer = _own_tokenizer(options, tickets, console)
    tickets.save(options.output, tokenizer)
    if options.json:
        print(options.output.read_text(encoding="utf-8"), end="")
    else:
        _show(Tickets.load(options.output), options.limit, options.output)
    return 0


def _tensor_names(text: str) -> str | tuple[str, str]:
    names = text.split(",")
    if len(names) > 2 or not all(names):
        raise InputError(f"--tensor is {text!r}: expected one name, or two with a comma between them and no space")
    return (names[0], names[1]) if len(names) == 2 else names[0]


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
    check_writable(path, path.parent)
    if path.is_dir():
        raise InputError(f"--output {path} is a folder: expected a file to write, such as {path / 'tickets.json'}")
    if path.exists():
        try:
            Tickets.load(path)
        except InputError as error:
            raise InputError(f"--output would replace a file that holds no tickets; name another ({error})") from None


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, from its own files and without running code of it."""
    import transformers

    from kslottery_fast.lab.models.sources import quiet_transformers

    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise InputError(f"{folder} holds no tokenizer: expected a folder as save_pretrained writes it")
    with quiet_transformers():
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # What transformers raises for damaged files depends on the kind of tokenizer.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise InputError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def _own_tokenizer(options: argparse.Namespace, tickets: Tickets, console: RunConsole) -> Any:
    """The tokenizer beside AFTER, else beside BEFORE, if there is one that fits."""
    for path in (options.after, options.before):
        folder = path if path.is_dir() else path.parent
        if any((folder / name).exists() for name in _TOKENIZER_FILES):
            try:
                tokenizer = _load_tokenizer(folder)
                tickets.tokens(tokenizer)
            except InputError as error:
                console.say(f"note: token ids without their texts: {error}")
                return None
            return tokenizer
    return None


def _show(tickets: Tickets, limit: int, path: Path) -> None:
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("rank", "token id", *(["token"] if tickets.token_texts else []), "D", "p"):
        table.add_column(heading, justify="left" if heading == "token" else "right")
    texts = tickets.token_texts or ("",) * len(tickets)
    rows = zip(tickets.token_ids.tolist(), texts, tickets.statistic.tolist(), tickets.log_pvalue.tolist(), strict=True)
    for rank, (token, text, statistic, log_p) in enumerate(list(rows)[:limit], start=1):
        shown = [Text(visible_token(text))] if tickets.token_texts else []
        table.add_row(str(rank), str(token), *shown, f"{statistic:.4f}", pvalue_of_log(log_p))
    console.print(tickets.summary(), markup=False, soft_wrap=True)
    if len(tickets) and limit:
        console.print(table)
    if len(tickets) > limit:
        console.print(f"... and {len(tickets) - limit:,} more (--limit)", markup=False)
    console.print(f"Written to {path}", markup=False, soft_wrap=True)


def pvalue_of_log(log_p: float) -> str:
    """A p-value from its natural logarithm: two digits, also below the smallest float.

    >>> pvalue_of_log(math.log(0.0312)), pvalue_of_log(0.0), pvalue_of_log(-5672.837)
    ('0.031', '1', '2.1e-2464')
    """
    if log_p >= math.log(1e-4):
        return f"{math.exp(log_p):.2g}"
    power = math.floor(log_p / math.log(10))
    digits = f"{math.exp(log_p - power * math.log(10)):.1f}"
    return f"1.0e{power + 1}" if digits == "10.0" else f"{digits}e{power}"

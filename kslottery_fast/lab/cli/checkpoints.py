"""The commands about two checkpoints on disk: ``kslottery select`` (winning tickets) and ``scan`` (every matrix)."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.errors import InputError

if TYPE_CHECKING:
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.tickets.scan import Scan
    from kslottery_fast.tickets.tickets import Tickets

_CHECKPOINT = "a .safetensors file, the .index.json of a sharded checkpoint, or a model folder"
_SCAN_FILES = ("scan.json", "scan.csv", "scan.png")


def add_select(commands: Any) -> None:
    """``select``: the winning tickets, as a table and as a file."""
    parser = _parser(commands, _select, "select", "the winning tickets of two checkpoints on disk, read block by block")
    parser.add_argument(
        "--tensor", default="auto", metavar="NAME[,NAME]", help="the table; two names where AFTER calls it differently"
    )
    parser.add_argument("--correction", choices=("bonferroni", "bh"), help="for testing many rows")
    parser.add_argument("--top-k", type=int, help="the rows with the largest D, instead of a threshold")
    parser.add_argument("--output", type=Path, default=Path("tickets.json"), metavar="FILE", help="where tickets go")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="for the texts of tokens; by default AFTER's own")
    parser.add_argument("--limit", type=int, default=20, help="tickets in the table")
    parser.add_argument("--json", action="store_true", help="print the tickets file instead of the table")


def add_scan(commands: Any) -> None:
    """``scan``: how far every matrix moved, as a table, a picture, JSON and CSV."""
    purpose = "how far the rows of every matrix moved between two checkpoints: table, picture, JSON, CSV"
    parser = _parser(commands, _scan, "scan", purpose)
    files = f"folder for {', '.join(_SCAN_FILES)}"
    parser.add_argument("--output", type=Path, default=Path("scan"), metavar="DIR", help=files)
    parser.add_argument("--json", action="store_true", help="print scan.json instead of the table")


def _parser(commands: Any, run: Callable[..., int], name: str, purpose: str) -> argparse.ArgumentParser:
    """A subcommand with the arguments that both share."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=purpose, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help=f"the original model: {_CHECKPOINT}")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the tuned model, likewise")
    parser.add_argument("--alpha", type=float, default=0.05, help="significance level of the KS test")
    parser.add_argument("--method", default="auto", help="p-values: auto, exact, asymp, or the paper's threshold")
    parser.set_defaults(run=run)
    return parser


def _select(options: argparse.Namespace) -> int:
    if options.limit < 0:
        raise InputError(f"--limit is {options.limit}: expected a number of rows")
    names = options.tensor.split(",")
    if len(names) > 2 or not all(names):
        raise InputError(
            f"--tensor is {options.tensor!r}: expected one name, or two with a comma between them and no space"
        )
    from kslottery_fast.integrations.tokenizers import load_tokenizer
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.tickets.stored import ks_select_checkpoints
    from kslottery_fast.tickets.tickets import Tickets

    _check_tickets_file(options.output)
    console = RunConsole()
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
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
        _show_tickets(Tickets.load(options.output), options.limit, options.output)
    return 0


def _check_tickets_file(path: Path) -> None:
    """Refuse what cannot be written, and to replace what is no tickets file, before any work."""
    from kslottery_fast.base.files import check_writable
    from kslottery_fast.tickets.tickets import Tickets

    check_writable(path, path.parent, "--output")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder: expected a file to write, such as {path / 'tickets.json'}")
    if path.exists():
        try:
            Tickets.load(path)
        except InputError as error:
            raise InputError(f"--output would replace a file that holds no tickets; name another ({error})") from None


def _own_tokenizer(options: argparse.Namespace, tickets: Tickets, console: RunConsole) -> Any:
    """The tokenizer beside AFTER, else beside BEFORE, if there is one that fits."""
    from kslottery_fast.integrations.tokenizers import load_tokenizer, tokenizer_folder

    folder = tokenizer_folder(options.after, options.before)
    if folder is None:
        return None
    try:
        tokenizer = load_tokenizer(folder)
        tickets.tokens(tokenizer)
    except InputError as error:
        console.say(f"note: token ids without their texts: {error}")
        return None
    return tokenizer


def _show_tickets(tickets: Tickets, limit: int, path: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kslottery_fast.base.visible import visible_token
    from kslottery_fast.ks.significance import pvalue_of_log

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


def _scan(options: argparse.Namespace) -> int:
    from kslottery_fast.base.files import atomic_path, write_json, write_text
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.report.scan_figure import scan_figure
    from kslottery_fast.tickets.scan import scan_checkpoints

    before, after, folder = options.before, options.after, options.output
    _check_scan_folder(folder)
    with RunConsole().task("Comparing all matrices, MiB") as progress:
        scan = scan_checkpoints(before, after, alpha=options.alpha, method=options.method, progress=progress)
    picture = scan_figure(scan)
    write_json(folder / "scan.json", scan.to_json())
    write_text(folder / "scan.csv", scan.to_csv())
    with atomic_path(folder / "scan.png") as temporary:
        picture.write_png(temporary)
    if options.json:
        print((folder / "scan.json").read_text(encoding="utf-8"), end="")
    else:
        _show_scan(scan)
        print(f"Written to {folder}: {', '.join(_SCAN_FILES)}")
    return 0


def _check_scan_folder(folder: Path) -> None:
    """Refuse what cannot be written, and to replace what an earlier scan did not write, before any work."""
    from kslottery_fast.base.files import check_writable, read_json
    from kslottery_fast.tickets.scan import FORMAT

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file: expected a folder")
    check_writable(folder, folder, "--output")
    taken = [name for name in _SCAN_FILES if (folder / name).exists()]
    found = read_json(folder / "scan.json") if "scan.json" in taken else None
    if taken and not (isinstance(found, dict) and found.get("format") == FORMAT):
        raise InputError(f"--output would replace {folder / taken[0]}, which no scan wrote; name another folder")


def _show_scan(scan: Scan) -> None:
    """Print one line a matrix, grouped by layer, and what was not compared. Nothing depends on colour."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kslottery_fast.lab.report.words import compact, number, percent

    console = Console(highlight=False)
    padding = (0, 1 + (console.width >= 100), 0, 0)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    table.add_column("layer", justify="right")
    table.add_column("matrix", overflow="fold")
    for heading in ("rows", "d", "changed\nrows", "signi-\nficant", "D mean", "D max", "D mean,\nchanged"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for shift in scan.tensors:
        place = shift.stack, shift.layer
        if previous not in (None, place):
            table.add_section()
        table.add_row(
            "" if shift.layer is None or place == previous else str(shift.layer),
            Text(shift.kind + (" *" if shift.embedding else ""), style="bold" if shift.embedding else ""),
            compact(shift.rows),
            str(shift.dimension),
            compact(shift.changed_rows) if shift.changed_rows else "–",
            "no test" if shift.significant_rows is None else percent(shift.significant_share, 1),
            *(number(value, 4) for value in (shift.mean_d, shift.max_d, shift.mean_d_changed)),
        )
        previous = place
    console.print(table)
    for line in scan.legend():
        console.print(line, markup=False, soft_wrap=True)

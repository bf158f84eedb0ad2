"""The commands about two checkpoints on disk: ``kslottery select`` for tickets, ``scan`` for every matrix."""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Correction, Method, Selector, TableName

from .comparison import add_comparison_files, comparison_contents, comparison_files, write_comparison
from .options import (
    AS_JSON,
    Parser,
    add_command,
    add_force,
    add_results,
    at_least,
    checkpoint,
    place,
    print_json,
    probability,
    refuse_existing,
)
from .pairing import add_pairing, pairing

if TYPE_CHECKING:
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.tickets.comparison import TableComparison
    from kslottery_fast.tickets.selected_rows import SelectedRows
    from kslottery_fast.tickets.tickets import Tickets

    T = TypeVar("T", bound=Tickets | SelectedRows)

_CHECKPOINT = "model folder, weight file, .index.json of a sharded checkpoint, or org/name on the Hugging Face Hub"
_SCAN_FILES = ("scan.json", "scan.csv", "scan.png")


def add_select(commands: Any) -> None:
    """Add ``select``, which finds the tickets of two checkpoints."""
    parser = _parser(
        commands,
        "select",
        _select,
        "find the tickets of two checkpoints",
        "Tickets are the rows of the embedding table that shifted significantly. They are\n"
        "printed as a table and written to a file, with the texts of the tokens if either\n"
        "folder holds a tokenizer. A summary says what became of all rows. The tables are\n"
        "read in blocks, so they may be of any size.",
        [
            "select base-model tuned-model",
            "select base-model tuned-model --report rows.html --csv rows.csv",
            "select base-model tuned-model -k 18 --output top18.json",
            "select base-model tuned-model --select-by l2 -k 64",
            "select base-model tuned-model --table output --output head-tickets.json",
        ],
    )
    choice = parser.add_argument_group("selection of tickets")
    _add_test(choice)
    choice.add_argument(
        "--correction", choices=get_args(Correction), help="correction for testing many rows (default: none)"
    )
    choice.add_argument(
        "--select-by",
        choices=get_args(Selector),
        default="ks",
        help="what rows are ranked by. l2 is how far a row moved, and needs -k. The others need more than checkpoints",
    )
    choice.add_argument(
        "-k", "--top-k", type=at_least(1), metavar="N", help="take the N rows of largest D, or of largest L2 shift"
    )
    choice.add_argument(
        "--table", choices=get_args(TableName), default="input", help="the input embedding, or that of the output head"
    )
    choice.add_argument(
        "--tensor",
        type=_tensor,
        default="auto",
        metavar="NAME[,NAME]",
        help="name of the table; two names if BEFORE and AFTER call it differently",
    )
    add_pairing(choice)
    choice.add_argument(
        "--tokenizer", type=place, metavar="DIR", help="folder of the tokenizer (default: that of AFTER or BEFORE)"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--limit", type=at_least(0), default=20, metavar="N", help="rows in the table")
    group.add_argument("--output", type=place, metavar="FILE", help="file for the tickets (default: tickets.json)")
    add_comparison_files(group)
    add_force(group, "overwrite files that exist")
    add_results(parser, group, as_json=f"{AS_JSON}, and write no file")


def add_scan(commands: Any) -> None:
    """Add ``scan``, which measures the shift of every matrix."""
    parser = _parser(
        commands,
        "scan",
        _scan,
        "measure how far every matrix of two checkpoints shifted",
        "Every row of every matrix is tested, also those of fused experts. Of vectors, such as\n"
        "norms and biases, the change is measured. What changed is printed. All tensors are\n"
        f"written to a folder as {', '.join(_SCAN_FILES)}.",
        [
            "scan base-model tuned-model",
            "scan base-model tuned-model --rows shared",
            "scan text-model vision-model --map model=model.language_model",
        ],
    )
    test = parser.add_argument_group("test")
    _add_test(test)
    test.add_argument("--table", choices=get_args(TableName), help="compare this table alone (default: all tensors)")
    add_pairing(test)
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=place, metavar="DIR", help="folder for the files (default: scan)")
    add_force(group, "overwrite the files if they exist")
    add_results(parser, group, as_json=f"{AS_JSON}, and write no file")


def _parser(
    commands: Any, name: str, run: Callable[..., int], purpose: str, text: str, examples: Sequence[str]
) -> Parser:
    parser = add_command(commands, name, run, purpose, text, examples, "BEFORE", "AFTER")
    parser.add_argument("before", type=checkpoint, metavar="BEFORE", help=f"the original model: {_CHECKPOINT}")
    parser.add_argument(
        "after", type=checkpoint, metavar="AFTER", help="the fine-tuned model, likewise, or a PEFT adapter"
    )
    return parser


def _add_test(group: Any) -> None:
    group.add_argument("--alpha", type=probability, default=0.05, metavar="NUMBER", help="significance level")
    group.add_argument("--method", choices=get_args(Method), default="auto", help="how p-values are computed")


def _tensor(text: str) -> str | tuple[str, str]:
    names = text.split(",")
    if len(names) > 2 or not all(names):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither one name nor two names with a comma and no space between them"
        )
    return names[0] if len(names) == 1 else (names[0], names[1])


def _output(options: argparse.Namespace, default: str) -> Path | None:
    """The file or folder to write. None with ``--json``, which writes nothing."""
    files = [f"--{name}" for name in ("output", "force", "report", "csv", "plot") if getattr(options, name, None)]
    if options.json and files:
        raise InputError(f"--json writes no file; leave out {' and '.join(files)}, or --json")
    return None if options.json else options.output or Path(default)


def _select(options: argparse.Namespace) -> int:
    _check_selector(options)
    output = _output(options, "tickets.json")
    if output is not None:
        _check_file(output, force=options.force)
    files = comparison_files(options)
    _check_inputs(options)
    from kslottery_fast.integrations.tokenizers import load_tokenizer
    from kslottery_fast.ks.decision import check_options
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.tickets.comparison import compare_checkpoints

    check_options(options.alpha, options.correction, options.top_k)
    console = RunConsole(quiet=options.quiet)
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
    test = {name: getattr(options, name) for name in ("alpha", "method", "correction")}
    reading = {"tensor": options.tensor, "table": options.table, "tokenizer": tokenizer, **pairing(options)}
    _quiet_downloads(options)
    with console.task("Comparing rows") as progress, console.warnings_as_notes():
        found = compare_checkpoints(options.before, options.after, progress=progress, **reading, **test)
        if not len(found.counts):
            raise InputError(f"{found.before} or {found.after} is a table without rows: there is nothing to compare")
        tickets = found.l2_rows(options.top_k) if options.select_by == "l2" else found.tickets(options.top_k)
    if tokenizer is None and (found.changed or files):
        found = _with_own_tokens(options, found, console)
    tickets = _with_texts(tickets, found, console)
    if output is None:
        print_json({**tickets.to_dict(), "comparison": found.to_dict()})
        return 0
    contents = comparison_contents(found, files)  # if this fails, nothing is written
    output.parent.mkdir(parents=True, exist_ok=True)
    tickets.save(output)
    write_comparison(contents)
    print(found.summary())
    _show_tickets(tickets, options.limit)
    print(f"Written to {', '.join(map(str, [output, *files.values()]))}")
    return 0


_NEEDS = {
    "gradient": "the gradients of the training, which checkpoints do not hold; train with `kslottery run --select-by`",
    "frequency": "the training texts, which checkpoints do not hold; train with `kslottery run --select-by`",
    "contribution": "the training texts, which checkpoints do not hold; call kslottery_fast.row_contributions",
}
"""What a selector needs that this command does not have."""


def _check_selector(options: argparse.Namespace) -> None:
    by = options.select_by
    if by in _NEEDS:
        raise InputError(f"--select-by {by} needs {_NEEDS[by]}, or choose --select-by ks or l2")
    if by == "l2" and options.top_k is None:
        raise InputError("--select-by l2 needs -k N, the number of rows: an L2 shift has no significance level")


def _check_inputs(options: argparse.Namespace) -> None:
    """Refuse paths that do not exist, before any work."""
    from kslottery_fast.checkpoints.file_errors import exists, nothing

    for name in ("before", "after"):
        path = getattr(options, name)
        if isinstance(path, Path) and not exists(path):
            raise nothing(path, name.upper())
    tokenizer = getattr(options, "tokenizer", None)
    if tokenizer is not None and not tokenizer.exists():
        raise InputError(f"--tokenizer {tokenizer}: no such folder")


def _check_file(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before any work."""
    from kslottery_fast.base.files import check_writable

    check_writable(path, path.parent, "--output")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; give a file, such as {path / 'tickets.json'}")
    refuse_existing([path], force=force)


def _with_own_tokens(options: argparse.Namespace, found: "TableComparison", console: "RunConsole") -> "TableComparison":
    """The comparison with the tokens of the tokenizer in the folder of AFTER, or of BEFORE, if there is one."""
    from kslottery_fast.integrations.tokenizers import load_tokenizer, tokenizer_folder

    failed = []
    for name in ("after", "before"):
        try:
            folder = tokenizer_folder(getattr(options, name))
            if folder is None:
                continue
            with_tokens = found.with_tokens(load_tokenizer(folder))
        except InputError as error:
            failed.append(str(error))
            continue
        if failed:
            console.note(f"the texts of tokens are those of BEFORE: {failed[0]}")
        return with_tokens
    if failed:
        console.note(f"token ids are shown without their texts: {'; '.join(failed)}")
    return found


def _with_texts(tickets: "T", found: "TableComparison", console: "RunConsole") -> "T":
    """The tickets with the texts of their tokens, if each of them has one."""
    if found.tokens is None:
        return tickets
    texts = [found.tokens.texts[token] for token in tickets]
    if None in texts:
        lacking = list(tickets)[texts.index(None)]
        console.note(f"token ids are shown without their texts: the tokenizer has no token {lacking}")
        return tickets
    return replace(tickets, token_texts=tuple(map(str, texts)))


def _show_tickets(tickets: "Tickets | SelectedRows", limit: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kslottery_fast.base.visible import visible_token
    from kslottery_fast.ks.significance import pvalue_of_log
    from kslottery_fast.tickets.selected_rows import SelectedRows

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    if isinstance(tickets, SelectedRows):
        columns = {tickets.unit: [f"{value:.4f}" for value in tickets.values[:limit].tolist()]}
    else:
        columns = {"D": [f"{d:.4f}" for d in tickets.statistic[:limit].tolist()]}
        columns["p"] = [pvalue_of_log(log_p) for log_p in tickets.log_pvalue[:limit].tolist()]
    for heading in ("rank", "token id", *(["token"] if tickets.token_texts else []), *columns):
        table.add_column(heading, justify="left" if heading == "token" else "right")
    for row, (token, *numbers) in enumerate(zip(tickets.token_ids[:limit].tolist(), *columns.values(), strict=True)):
        text = [Text(visible_token(tickets.token_texts[row]))] if tickets.token_texts else []
        table.add_row(str(row + 1), str(token), *text, *numbers)
    console.print(tickets.summary(), markup=False, soft_wrap=True)
    if table.rows:
        console.print(table)
    if len(tickets) > limit:
        console.print(f"... and {len(tickets) - limit:,} more (--limit)", markup=False)


def _scan(options: argparse.Namespace) -> int:
    folder = _output(options, "scan")
    if folder is not None:
        _check_folder(folder, force=options.force)
    _check_inputs(options)
    from kslottery_fast.base.files import atomic_path, write_json, write_text
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.report.scan_figure import scan_figure
    from kslottery_fast.tickets.scan import scan_checkpoints

    from .scan_table import show_scan

    test = {name: getattr(options, name) for name in ("alpha", "method", "table")}
    test |= pairing(options)
    console = RunConsole(quiet=options.quiet)
    _quiet_downloads(options)
    with console.task("Comparing all tensors, MiB") as progress, console.warnings_as_notes():
        on_hub = not all(isinstance(each, Path) for each in (options.before, options.after))
        told = _announced(progress, console) if on_hub else progress
        scan = scan_checkpoints(options.before, options.after, progress=told, **test)
    if folder is None:
        print_json(scan.to_json())
        return 0
    picture = scan_figure(scan)
    write_json(folder / "scan.json", scan.to_json())
    write_text(folder / "scan.csv", scan.to_csv())
    with atomic_path(folder / "scan.png") as temporary:
        picture.write_png(temporary)
    show_scan(scan)
    print(f"Written to {folder}: {', '.join(_SCAN_FILES)}")
    return 0


def _quiet_downloads(options: argparse.Namespace) -> None:
    """Without progress, huggingface_hub shows none either for the files that it downloads whole."""
    if options.quiet and any(isinstance(each, str) for each in (options.before, options.after)):
        import huggingface_hub.utils

        huggingface_hub.utils.disable_progress_bars()


def _announced(progress: Callable[[int, int], None], console: "RunConsole") -> Callable[[int, int], None]:
    """A progress that says with its first call how much is read.

    By then only headers were fetched, and the files that are downloaded whole, after lines of their own.
    """
    calls = itertools.count()

    def announced(done: int, total: int) -> None:
        if next(calls) == 0:
            size = f"{total:,} MiB" if total else "less than 1 MiB"
            console.note(f"{size} of matrices are compared, and those that are still on the Hub are fetched")
        progress(done, total)

    return announced


def _check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that cannot be written, before any work."""
    from kslottery_fast.base.files import check_writable

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder")
    check_writable(folder, folder, "--output")
    refuse_existing([folder / name for name in _SCAN_FILES], force=force)

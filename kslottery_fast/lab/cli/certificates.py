"""The command about certificates: ``kslottery certify``."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from .experiments import FOLDER
from .options import add_command, add_results, at_least, place, print_json, words

if TYPE_CHECKING:
    from kslottery_fast.evaluation.selection_certificate import SelectionCertificate

_HEADINGS = ("rows by", "rows", "D left out", "certified", "wrong", "by reading", "agreement", "at least")


def add_certify(commands: Any) -> None:
    """Add ``certify``, which computes certificates again."""
    parser = add_command(
        commands,
        "certify",
        _certify,
        "recompute and check the certificates of an experiment",
        "The command prints what the certificates guarantee. A certificate follows from\n"
        "the rows and predictions in the folder, and a file that does not follow from\n"
        "the others is refused. No file is written, and no model is run without\n"
        "--selectors.\n\n"
        "--selectors certifies the rows that every selector would choose (contribution\n"
        "too, if the experiment measured it). The largest D that a selector leaves out\n"
        "takes the place of tau, and the criterion is no proof here either. By reading is\n"
        "the share of positions where the two models must agree. Wrong is a share of the\n"
        "certified positions. Agreement is the share of positions where the model with\n"
        "these rows predicts as the embed-tuned model does, and the last column is its\n"
        "lower bound for the average sentence, with 95% confidence.",
        ["certify runs/es", "certify runs/es --selectors 18,64"],
        "DIR",
    )
    parser.add_argument("folder", type=place, metavar="DIR", help=FOLDER)
    parser.add_argument(
        "--selectors", type=_sizes, metavar="K,...", help="run models with the K rows that each selector chooses"
    )
    add_results(parser)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(at_least(1), words(text))))


def _certify(options: argparse.Namespace) -> int:
    from kslottery_fast.lab.experiment.certificate import recomputed

    if options.selectors:
        return _selectors(options)
    found = recomputed(options.folder)
    if options.json:
        print_json({name: one.to_dict() for name, one in found.items()})
    else:
        for name, certificate in found.items():
            print(f"{name}\n{certificate}\n")
    return 0


def _selectors(options: argparse.Namespace) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before tokenizers are imported
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.selector_certificates import selector_certificates

    found = selector_certificates(options.folder, options.selectors, RunConsole(quiet=options.quiet))
    if options.json:
        print_json({name: [one.to_dict() for one in each] for name, each in found.items()})
        return 0
    for name, each in found.items():
        print(name)
        for cells in (_HEADINGS, *map(_cells, each)):
            print(f"{cells[0]:<12}" + "".join(f"{cell:>12}" for cell in cells[1:]))
    return 0


def _cells(one: "SelectionCertificate") -> tuple[str, ...]:
    level, share = one.level, one.agreement.share
    return (
        one.selected_by,
        f"{one.rows:,}",
        f"{level.tau:.4f}",
        f"{level.certified:.1%}",
        "-" if level.violation_rate is None else f"{level.violation_rate:.1%}",
        "-" if level.read_positions is None else f"{level.read_positions / one.positions:.1%}",
        f"{one.agreement.positions.value:.1%}",
        "-" if share is None else f"{share.low:.1%}",
    )

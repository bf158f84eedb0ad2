"""How figures of the report look and how they are written: style, colours, text, PNG, and SVG for the page.

Figures use matplotlib without pyplot and are the same bytes for the same data. Text is never read as mathematics,
because a token may be ``$``. Characters that the font lacks become escapes. A model has the same colour in all figures.
"""

from __future__ import annotations

import functools
import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from kslottery_fast.base.visible import escape_sign, visible_token

from .words import MODELS

PAPER, INK, MUTED, GRID, DOTS = "#ffffff", "#1f2328", "#656d76", "#e3e6e8", "#a9b1b8"
TICKET, VIOLATION, RIGHT = "#c8501e", "#b8860b", "#6a51a3"
CONTRIBUTION = "#8f1d3f"
MODEL_COLOURS = {  # after Okabe and Ito (2008); labels and order distinguish the models as well
    "untuned": "#7d858c",
    "embed_tuning": "#0a66a8",
    "partial_transfer": "#5aa9dd",
    "partial_tuning": TICKET,
    "frequency_tuning": "#0f8f6b",
    "random_tuning": "#b56597",
}
# report.css defines these variables twice, for light and for dark pages.
_NAMES = {
    PAPER: "paper",
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    DOTS: "dots",
    VIOLATION: "violation",
    RIGHT: "right",
    CONTRIBUTION: "contribution",
}
_NAMES |= {colour: name.replace("_", "-") for name, colour in MODEL_COLOURS.items()}
_OTHERS = {"l2": RIGHT, "gradient": VIOLATION, "contribution": CONTRIBUTION}  # arms that a plain run lacks
CSS_VARIABLES = {colour: f"--{name}" for colour, name in _NAMES.items()}
WIDTH = 7.0  # inches: the text width of a paper with one column
DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.5))
NOTE: dict[str, Any] = {"textcoords": "offset points", "size": 7}  # of a number next to the mark whose value it is
_ANY_COLOUR = re.compile("|".join(CSS_VARIABLES))
_TICKS = {"color": MUTED, "labelcolor": INK, "labelsize": 7.5, "major.width": 0.6}
_STYLE_BY_GROUP: tuple[tuple[str, dict[str, Any]], ...] = (
    ("axes", {"axisbelow": True, "edgecolor": MUTED, "labelcolor": INK, "linewidth": 0.6}),
    ("axes", {"grid": True, "grid.axis": "y", "spines.right": False, "spines.top": False}),
    ("axes", {"titlelocation": "left", "titlesize": 8, "titleweight": "bold"}),
    ("figure", {"dpi": 200}),
    ("font", {"family": "DejaVu Sans", "size": 8}),  # comes with matplotlib, so it is the same on every machine
    ("grid", {"color": GRID, "linewidth": 0.6}),
    ("legend", {"fontsize": 7.5, "frameon": False}),
    ("savefig", {"dpi": 200}),
    ("svg", {"fonttype": "path", "hashsalt": "kslottery"}),
    ("text", {"color": INK, "parse_math": False}),
    ("xtick", _TICKS),
    ("ytick", _TICKS),
)
_STYLE = {f"{group}.{name}": value for group, values in _STYLE_BY_GROUP for name, value in values.items()}


class Svg(NamedTuple):
    """The content of an ``<svg>`` element: its view box, its width on the page, and the drawing itself."""

    box: str
    width: str
    body: str


@dataclass(frozen=True)
class Picture:
    """A figure with the texts that a page needs. They are prose, not HTML.

    Attributes
    ----------
    name : str
        The name of its file, without suffix, and of its element on the page.
    title, alt : str
        What it shows.
    caption : str
        How it was computed and how to read it.
    figure : Figure
        Matplotlib's figure.
    """

    name: str
    title: str
    alt: str
    caption: str
    figure: Figure

    def write_png(self, path: Path) -> None:
        """Write the figure as PNG."""
        with style():
            self.figure.savefig(path, format="png", metadata={"Software": None})

    def svg(self) -> Svg:
        """Return the figure for a page: its ids start with its name, its colours are CSS variables."""
        buffer = io.StringIO()
        with style():
            undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(buffer, format="svg", facecolor="none", metadata=undated)
        text = buffer.getvalue()
        head, text = text[text.index("<svg") :].split(">", 1)
        box = re.search(r'viewBox="([^"]*)"', head)
        assert box is not None, "matplotlib always writes a viewBox"
        text = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*|</svg>\s*$", "", text, flags=re.DOTALL)
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        text = _ANY_COLOUR.sub(lambda match: f"var({CSS_VARIABLES[match[0]]})", text)
        return Svg(box[1], f"{100 * self.figure.get_figwidth() / WIDTH:.0f}%", text)


def style() -> AbstractContextManager[None]:
    """Return the style of all figures, based on matplotlib's defaults and not on the user's matplotlibrc."""
    return matplotlib.style.context(["default", _STYLE])


def colour_of(arm: str) -> str:
    """Return the colour of an arm, which does not depend on its size; a muted one if it has no colour of its own."""
    name = re.split("[@:]", arm)[0]
    return MODEL_COLOURS[MODELS[name][0]] if name in MODELS else _OTHERS.get(name.removeprefix("transfer-"), MUTED)


def panels(height: float, shape: tuple[int, int] = (1, 1), width: float = WIDTH, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of a size in inches, and its axes: one, or an array of them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*shape, **options)


def lie_bars_down(*panels: Axes) -> None:
    """Set up axes for horizontal bars: vertical grid lines, and no line at the names on the left."""
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.spines["left"].set_visible(False)


def add_title(figure: Figure, title: str) -> str:
    """Add a bold title at the upper left of the figure, and return it."""
    figure.suptitle(title, x=0.008, ha="left", size=8.5, weight="bold")
    return title


def add_legend(figure: Figure, axes: Axes, title: str, columns: int) -> str:
    """Add the legend of ``axes`` above the axes and below a bold title, and return the title."""
    place: dict[str, Any] = {"loc": "outside upper left", "ncols": columns, "columnspacing": 1.4, "borderaxespad": 0.2}
    legend = figure.legend(*axes.get_legend_handles_labels(), title=title, alignment="left", **place)
    legend.get_title().set(size=8.5, weight="bold")
    return title


def token_label(token: str, limit: int = 18) -> str:
    """Return a token as a figure can show it: at most ``limit`` characters, with escapes for those the font lacks."""
    text = visible_token(token)
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    if not any(sign.isalnum() for sign in shown):
        shown = f"“{shown}”"  # a lone full stop is hardly visible
    return "".join(sign if ord(sign) in _glyphs() else escape_sign(sign) for sign in shown)


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters that DejaVu Sans has in both weights."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    regular, bold = (FT2Font(str(fonts / name)) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
    return frozenset(regular.get_charmap()) & frozenset(bold.get_charmap())

"""How a figure of the report looks and is written: style, colours, text, PNG, and SVG for the page.

Matplotlib without pyplot, the same bytes for the same data. Text is never mathematics (a token may be ``$``),
glyphs that the font lacks become escapes, and one model has one colour everywhere.
"""

from __future__ import annotations

import functools
import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from .words import MODELS, escape_sign, visible_token

PAPER, INK, MUTED, GRID, DOTS = "#ffffff", "#1f2328", "#656d76", "#e3e6e8", "#a9b1b8"
TICKET, VIOLATION, RIGHT = "#c8501e", "#b8860b", "#6a51a3"
MODEL_COLOURS = {  # after Okabe and Ito (2008); labels and order also tell the models apart
    "untuned": "#7d858c",
    "embed_tuning": "#0a66a8",
    "partial_transfer": "#5aa9dd",
    "partial_tuning": TICKET,
    "frequency_tuning": "#0f8f6b",
    "random_tuning": "#b56597",
}
# report.css defines these variables twice, for light and for dark pages.
_PLAIN = {"paper": PAPER, "ink": INK, "muted": MUTED, "grid": GRID, "dots": DOTS}
_PLAIN |= {"violation": VIOLATION, "right": RIGHT}
CSS_VARIABLES = {colour: f"--{name.replace('_', '-')}" for name, colour in {**_PLAIN, **MODEL_COLOURS}.items()}
WIDTH = 7.0  # inches: the text width of a paper with one column
_ANY_COLOUR = re.compile("|".join(CSS_VARIABLES))

_TICKS = {"color": MUTED, "labelcolor": INK, "labelsize": 7.5, "major.width": 0.6}
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "figure.dpi": 200,
    "font.family": "DejaVu Sans",  # the one that comes with matplotlib: the same picture on every machine
    "font.size": 8,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "kslottery",
    "text.color": INK,
    "text.parse_math": False,
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
}


class Svg(NamedTuple):
    """What stands in an ``<svg>`` element: its view box, its width on the page, and the drawing itself."""

    box: str
    width: str
    body: str


@dataclass(frozen=True)
class Picture:
    """A figure with what a page needs around it.

    ``title`` and ``alt`` say what it shows; ``caption`` also says how it was computed. Prose, not HTML.
    """

    name: str
    title: str
    alt: str
    caption: str
    figure: Figure

    def write_png(self, path: Path) -> None:
        """Write the figure at 200 dpi on white."""
        with style():
            self.figure.savefig(path, format="png", metadata={"Software": None})

    def svg(self) -> Svg:
        """The figure for a page: its ids start with the name, its colours are CSS variables."""
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
    """The style of every figure, over matplotlib's defaults and not over the user's matplotlibrc."""
    return matplotlib.style.context(["default", _STYLE])


def colour_of(arm: str) -> str:
    """The colour of an arm, whatever its size; a muted one where it has none of its own.

    >>> colour_of("partial@18") == colour_of("partial@tickets") == TICKET, colour_of("lora@18") == MUTED
    (True, True)
    """
    name = re.split("[@:]", arm)[0]
    return MODEL_COLOURS[MODELS[name][0]] if name in MODELS else {"l2": RIGHT, "gradient": VIOLATION}.get(name, MUTED)


def add_title(figure: Figure, title: str) -> str:
    """Put a bold title at the upper left of the figure; return it."""
    figure.suptitle(title, x=0.008, ha="left", size=8.5, weight="bold")
    return title


def add_legend(figure: Figure, axes: Axes, title: str, columns: int) -> str:
    """Put the legend of ``axes`` in one line above it all, under the bold title; return the title."""
    legend = figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper left",
        ncols=columns,
        columnspacing=1.4,
        borderaxespad=0.2,
        title=title,
        alignment="left",
    )
    legend.get_title().set(size=8.5, weight="bold")
    return title


def token_label(token: str, limit: int = 18) -> str:
    r"""A token as a figure can show it: at most ``limit`` signs, escapes for what the font lacks.

    >>> token_label(" Spanish"), token_label("$x_1$"), token_label("\u8bd1"), token_label(".")
    ('␣Spanish', '$x_1$', '\\u8bd1', '“.”')
    """
    text = visible_token(token)
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    if not any(sign.isalnum() for sign in shown):
        shown = f"“{shown}”"  # a full stop alone looks like dirt
    return "".join(sign if ord(sign) in _glyphs() else escape_sign(sign) for sign in shown)


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters that DejaVu Sans has in both weights."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    regular, bold = (FT2Font(str(fonts / name)) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
    return frozenset(regular.get_charmap()) & frozenset(bold.get_charmap())

"""The forms in which tickets are shown: a line, a table in a notebook, a pandas frame, a figure."""

from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.arguments import shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.visible import visible_token
from kslottery_fast.ks.significance import pvalue_of_log

from .texts import left_out, of_rows
from .ticket_data import TicketData

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

_ROWS = 20  # of the table in a notebook
_CORRECTIONS = {None: "", "bonferroni": ", Bonferroni", "bh": ", Benjamini-Hochberg"}


class TicketViews(TicketData):
    """How tickets are shown: as a line, in a notebook, as a frame and as a figure."""

    def __repr__(self) -> str:
        table = "" if self.table == "input" else f", table={self.table!r}"
        return (
            f"Tickets({len(self)} of {self.compared_rows} rows, d={self.dimension}, alpha={self.alpha}, "
            f"method={self.method!r}, selected_by={self.selected_by!r}{table})"
        )

    def _repr_html_(self) -> str:
        return _html_of(self)

    def summary(self) -> str:
        """Return one line for a log or a terminal.

        Returns
        -------
        str

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> print(Tickets.from_counts([3], [4], **settings).summary())
        1 ticket of 10 rows (10%): D >= 1.0000 (4/4), alpha 0.05, exact KS test
        """
        return _summary_of(self)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a pandas DataFrame with a row for each ticket, in their order. It needs pandas.

        Returns
        -------
        pandas.DataFrame
            The index ``rank`` begins with 1. The columns are ``token_id``, ``token`` (if texts are known), ``count``,
            ``statistic``, ``pvalue`` and ``log_pvalue``. The settings of the selection are in ``attrs``.

        Raises
        ------
        InputError
            pandas is not installed.

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> frame = Tickets.from_counts([3, 7], [4, 4], **settings).to_pandas()
        >>> frame.loc[1, "token_id"].item(), frame["statistic"].tolist()
        (3, [1.0, 1.0])
        """
        return _frame_of(self, self._settings())

    def plot(self, ax: "matplotlib.axes.Axes | None" = None) -> "matplotlib.axes.Axes":
        """Plot D of the tickets by rank, and the threshold. It needs matplotlib.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. By default a new figure is made.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        InputError
            matplotlib is not installed.
        TypeError
            ``ax`` is something else.

        Examples
        --------
        >>> from kslottery_fast import Tickets
        >>> from matplotlib.figure import Figure
        >>> settings = {"vocab_size": 10, "dimension": 4, "threshold_count": 4, "alpha": 0.05}
        >>> ax = Tickets.from_counts([3, 7], [4, 4], **settings).plot(Figure().add_subplot())
        >>> ax.get_ylabel()
        'KS statistic D'
        """
        return _plot_of(self, ax)


def _summary_of(tickets: TicketData) -> str:
    """One line for a log or a terminal."""
    bound = f"D >= {tickets.threshold:.4f} ({tickets.threshold_count}/{tickets.dimension})"
    test = f"{tickets.method} KS test{left_out(tickets)}"
    if tickets.selected_by == "top_k":
        return f"{_size(tickets)}: {bound}, the largest D whatever their p-value, {test}"
    level = f"alpha {tickets.alpha:g}{_CORRECTIONS[tickets.correction]}"
    return f"{_size(tickets)}: {bound}, {level}, {test}"


def _size(tickets: TicketData) -> str:
    k, V = len(tickets), tickets.compared_rows
    share = f" ({100 * k / V:.3g}%)" if V else ""
    return f"{k:,} ticket{'' if k == 1 else 's'} of {V:,} {of_rows(tickets)}{share}"


def _html_of(tickets: TicketData) -> str:
    """The summary and a table of the first rows. All text is escaped."""
    texts = None if tickets.token_texts is None else tickets.token_texts[:_ROWS]
    headings = ("rank", "token id", *(["token"] if texts else []), "D", "p")
    columns = (column[:_ROWS].tolist() for column in (tickets.token_ids, tickets.statistic, tickets.log_pvalue))
    lines = []
    for row, (token, d, log_p) in enumerate(zip(*columns, strict=True)):
        cells = [f"{row + 1}", f"{token}", *([visible_token(texts[row])] if texts else [])]
        cells += [f"{d:.4f}", pvalue_of_log(log_p)]
        lines.append(_line("td", cells))
    table = f"<table><thead>{_line('th', headings)}</thead><tbody>{''.join(lines)}</tbody></table>" if lines else ""
    more = f"<p>... and {len(tickets) - _ROWS:,} more</p>" if len(tickets) > _ROWS else ""
    return f"<div><p>{escape(_summary_of(tickets))}</p>{table}{more}</div>"


def _line(kind: str, cells: Any) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"


def _frame_of(tickets: TicketData, settings: dict[str, Any]) -> Any:
    """A pandas DataFrame with a row for each ticket, ranks as its index and the settings as ``attrs``."""
    _require("pandas", "Tickets.to_pandas")
    import pandas as pd

    columns = {
        "token_id": tickets.token_ids.numpy().copy(),
        **({} if tickets.token_texts is None else {"token": list(tickets.token_texts)}),
        "count": tickets.counts.numpy().copy(),
        "statistic": tickets.statistic.numpy().copy(),
        "pvalue": tickets.pvalue.numpy().copy(),
        "log_pvalue": tickets.log_pvalue.numpy().copy(),
    }
    frame = pd.DataFrame(columns, index=pd.RangeIndex(1, len(tickets) + 1, name="rank"))
    frame.attrs.update(settings)
    return frame


def _plot_of(tickets: TicketData, ax: Any) -> Any:
    """D by rank with the threshold, on matplotlib axes."""
    if ax is None:
        _require("matplotlib", "Tickets.plot")
        import matplotlib.pyplot as plt

        ax = plt.figure().add_subplot()
        ax.xaxis.get_major_locator().set_params(integer=True)
    elif not hasattr(ax, "axhline"):
        raise TypeError(f"ax is {shown(ax)}: expected matplotlib Axes, or None for a new figure")
    ax.plot(range(1, len(tickets) + 1), tickets.statistic.tolist(), ".-", markersize=4, linewidth=0.8, label="tickets")
    name = "smallest D selected"
    if tickets.selected_by == "alpha":
        name = f"smallest significant D (alpha {tickets.alpha:g}{_CORRECTIONS[tickets.correction]})"
    ax.axhline(tickets.threshold, linestyle="--", color="0.35", label=f"{name}: {tickets.threshold:.4f}")
    ax.set(xlabel="rank", ylabel="KS statistic D", title=_size(tickets))
    ax.set_ylim(bottom=0)
    ax.legend()
    return ax


def _require(package: str, what: str) -> None:
    if find_spec(package) is None:
        raise InputError(f"{what} needs {package}, which is not installed; pip install {package}")

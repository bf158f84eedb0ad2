"""What a person sees of tickets: the table in a notebook, the frame and the figure hold the tickets' own numbers."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from matplotlib.figure import Figure

from kslottery_fast.base.errors import InputError
from kslottery_fast.tickets.tickets import Tickets

SETTINGS: dict[str, Any] = {"vocab_size": 1000, "dimension": 8, "threshold_count": 5, "alpha": 0.05}


def some(**changes: Any) -> Tickets:
    return Tickets.from_counts([4, 9, 1], [6, 8, 6], **{**SETTINGS, **changes})


def test_the_table_in_a_notebook_has_rank_id_text_d_and_p_escaped_and_visible() -> None:
    html = some(token_texts=["<b>", " el", "\u202e&"])._repr_html_()
    assert html.startswith(
        "<div><p>3 tickets of 1,000 rows (0.3%): D &gt;= 0.6250 (5/8), alpha 0.05, exact KS test</p>"
    )
    for line in (
        "<tr><th>rank</th><th>token id</th><th>token</th><th>D</th><th>p</th></tr>",
        "<tr><td>1</td><td>9</td><td>␣el</td><td>1.0000</td><td>0.00016</td></tr>",
        "<tr><td>2</td><td>1</td><td>\\u202e&amp;</td><td>0.7500</td><td>0.019</td></tr>",
        "<tr><td>3</td><td>4</td><td>&lt;b&gt;</td><td>0.7500</td><td>0.019</td></tr>",
    ):
        assert line in html
    assert "<th>token</th>" not in some()._repr_html_()
    assert "<table>" not in some()[:0]._repr_html_()


def test_the_table_in_a_notebook_ends_after_twenty_rows() -> None:
    tickets = Tickets.from_counts(range(23), [8] * 23, **SETTINGS)
    html = tickets._repr_html_()
    assert html.count("<tr>") == 21
    assert html.endswith("<p>... and 3 more</p></div>")
    assert "more" not in tickets[:20]._repr_html_()


def test_the_frame_has_a_row_for_each_ticket_and_the_settings() -> None:
    frame = some(token_texts=["a", "b", "c"]).to_pandas()
    assert frame.index.tolist() == [1, 2, 3]
    assert frame.index.name == "rank"
    assert frame["token_id"].tolist() == [9, 1, 4]
    assert frame["token"].tolist() == ["b", "c", "a"]
    assert frame["count"].tolist() == [8, 6, 6]
    for name in ("statistic", "pvalue", "log_pvalue"):
        assert frame[name].tolist() == getattr(some(), name).tolist()
    others = {"method": "exact", "correction": None, "selected_by": "alpha", "table": "input", "vocab_size_after": None}
    assert frame.attrs == {**SETTINGS, **others}
    tickets = some()
    bare = tickets.to_pandas()
    bare.loc[1, "token_id"] = 0  # a copy
    assert "token" not in bare
    assert tickets == some()
    assert len(some()[:0].to_pandas()) == 0


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_pandas"), ("matplotlib", "plot")])
def test_a_package_that_is_not_installed_is_named(package: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"Tickets.{method} needs {package}, which is not installed; pip install"):
        getattr(some(), method)()


def test_the_figure_shows_d_by_rank_and_the_threshold() -> None:
    ax = Figure().add_subplot()
    tickets = some(correction="bh")
    assert tickets.plot(ax) is ax
    points, threshold = ax.get_lines()
    assert points.get_xydata().tolist() == [[1, 1.0], [2, 0.75], [3, 0.75]]
    assert set(threshold.get_ydata()) == {5 / 8}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rank", "KS statistic D")
    assert ax.get_title() == "3 tickets of 1,000 rows (0.3%)"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["tickets", "smallest significant D (alpha 0.05, Benjamini-Hochberg): 0.6250"]
    ax = some(selected_by="top_k", alpha=None).plot(Figure().add_subplot())
    assert ax.get_legend().get_texts()[1].get_text() == "smallest D selected: 0.6250"
    some()[:0].plot(Figure().add_subplot())
    with pytest.raises(TypeError, match="ax is 'left': expected matplotlib Axes, or None for a new figure"):
        some().plot("left")  # type: ignore[arg-type]


def test_without_axes_a_new_figure_is_made_with_whole_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "figure", Figure)
    ax = some().plot()
    assert all(tick == int(tick) for tick in ax.get_xticks())

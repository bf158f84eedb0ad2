"""The figures of the report: what they count and mark, and the files they become."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import scipy.stats
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from report_samples import Sample, arm, comparison, realistic, top_k, with_selection

from kslottery_fast.lab.report import picture, row_figures
from kslottery_fast.lab.report.certificate_figure import certificate
from kslottery_fast.lab.report.figures import pictures, scores, sizes, ticket_counts
from kslottery_fast.lab.report.picture import Picture, token_label
from kslottery_fast.lab.report.training_figures import costs, losses

PLAIN = ["scores-es", "losses-es", "costs-es", "histogram-es", "frequency-es", "ecdf-es", "certificate-es"]
COMPARED = [
    *("scores-es", "sizes-es", "losses-es", "costs-es", "tickets-es"),
    *("histogram-es", "frequency-es", "ecdf-es", "selectors-es", "certificate-es"),
]


def drawn(data: Sample) -> list[Picture]:
    curves = {"embed": np.linspace(3, 1, 30), "partial@tickets": np.linspace(3, 2, 30)}
    return pictures(data.summary, data.rows, dict.fromkeys(data.summary["languages"], curves))


def texts(each: Picture) -> list[str]:
    return [text.get_text() for text in each.figure.findobj(Text)]


def test_a_plain_run_has_the_figures_of_its_models_and_tickets_and_a_comparison_has_more():
    assert [each.name for each in drawn(realistic(rows=60))] == PLAIN
    both = {each.name: each.title for each in drawn(comparison("ca", rows=60))}
    assert list(both) == [*COMPARED, *(name.replace("-es", "-ca") for name in COMPARED), "languages"]
    assert both["histogram-es"] == "Shift of the active rows, Spanish", "the language, and how rows were chosen once"
    assert both["histogram-ca"] == "Shift of the active rows, Catalan"


def test_arms_of_one_size_make_no_curve_over_sizes():
    data = comparison(rows=60)
    for spec in ("partial@18", "partial@64", "frequency@18", "frequency@64", "lora@18"):
        del data.spanish["arms"][spec]
    assert "sizes-es" not in [each.name for each in drawn(data)]


def test_figures_leave_matplotlib_as_it_was_and_do_not_need_pyplot():
    before = dict(matplotlib.rcParams)
    drawn(realistic(tickets=5, rows=50))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, kslottery_fast.lab.report.figures; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_who_asks_for_finished_products_or_the_table_does_not_load_matplotlib():
    code = (
        "import sys; from kslottery_fast.lab.report import products, tables;"
        "assert not {'matplotlib', 'jinja2', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_data_give_the_same_bytes_whatever_the_users_matplotlibrc():
    def made() -> list[bytes]:
        files = [io.BytesIO() for _ in PLAIN]
        for each, file in zip(drawn(realistic(rows=100)), files, strict=True):
            each.write_png(file)
        return [file.getvalue() for file in files]

    first = made()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "pink", "text.usetex": True}):
        assert made() == first
    for content in first:
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") == 1400, "7 inches at 200 dpi"
        assert len(content) > 10_000


AWKWARD = [
    "$x_1$",
    "$",
    "\\frac{1}",
    "翻译",
    "🙂",
    "\ud800",
    "\x00\x1b[31m",
    "\u202e",
    " ",
    "",
    "_hidden",
    "a" * 300,
    "مرحبا",
]


def test_awkward_tokens_are_drawn_without_warnings():
    data = realistic(tickets=len(AWKWARD), rows=40)
    rows = data.rows["es"]
    tickets = [{**ticket, "token": token} for ticket, token in zip(rows.tickets, AWKWARD, strict=True)]
    shifts = [replace(rows.shifts[0], token=token) for token in AWKWARD]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of matplotlib's use of other packages
        drawn(replace(data, rows={"es": replace(rows, tickets=tickets)}))
        for start in range(0, len(AWKWARD), 6):
            row_figures.ecdf("es", replace(rows, shifts=shifts[start : start + 6])).svg()


@pytest.mark.parametrize("token", ["翻译", "🙂", "مر"])
def test_glyphs_that_the_font_lacks_become_escapes_in_figures(token):
    label = token_label(token)
    assert set(label) <= {chr(code) for code in picture._glyphs()}


def _edge_cases() -> dict[str, Sample]:
    data = realistic(tickets=1, rows=30)
    rows = data.rows["es"]
    still = replace(rows.shifts[0], after=rows.shifts[0].before)
    constant = replace(rows.shifts[0], before=np.zeros(576), after=np.zeros(576))
    short = realistic(tickets=1, rows=30)
    certificate = short.spanish["certificates"]["0"]
    certificate["levels"] = certificate["levels"][5:6]

    def with_rows(**changes: object) -> Sample:
        return replace(data, rows={"es": replace(rows, **changes)})

    return {
        "one ticket": data,
        "one level": short,
        "a threshold out of reach": with_selection(top_k(30), threshold=1.1),
        "rows that did not move": with_rows(shifts=[still, constant]),
        "counts of zero": with_rows(frequency=np.zeros(30, dtype=np.int64)),
        "two panels": with_rows(shifts=rows.shifts * 2),
        "four panels": with_rows(shifts=rows.shifts * 4),
    }


@pytest.mark.parametrize("case", _edge_cases())
def test_edge_case_is_drawn_without_warnings_and_without_nan(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of matplotlib's use of other packages
        for each in drawn(_edge_cases()[case]):
            each.svg()
            shown = " ".join([each.alt, each.caption, *texts(each)]).split()
            assert not {"nan", "inf", "None", "NaN"} & set(shown)


def test_rows_that_are_not_significant_are_called_tickets_in_no_figure():
    found = {each.name: each for each in drawn(top_k(60))}
    for each in found.values():
        assert each.title in texts(each)
        assert not [text for text in [each.caption, each.alt, *texts(each)] if "ticket" in text]
    assert "18 rows of largest D, none significant at alpha = 0.05" in found["histogram-es"].caption
    for name in ("histogram-es", "frequency-es"):
        assert any("rows of largest D" in text for text in texts(found[name]))


def test_the_title_of_a_certificate_says_how_much_is_certified_and_how_often_that_was_wrong():
    title = certificate("es", realistic(rows=60).spanish).title
    assert title == "Certified: 49.5% at alpha = 0.05, wrong at 7.0% of these"


def test_the_figure_of_a_certificate_shows_what_is_certified_by_reading_if_that_is_known():
    language = realistic(rows=60).spanish
    upper = certificate("es", language).figure.axes[0]
    curve = {line.get_label(): line.get_ydata() for line in upper.get_lines()}["certified by reading"]
    assert list(curve) == [11 * place / 1100 for place in range(9)]
    del language["certificates"]["0"]["levels"][0]["read_positions"]
    older = certificate("es", language)
    assert "certified by reading" not in [line.get_label() for line in older.figure.axes[0].get_lines()]
    assert "by reading" not in older.caption


def test_a_run_whose_stages_have_no_losses_has_no_curve():
    data = realistic(rows=60)
    assert "losses-es" not in [each.name for each in pictures(data.summary, data.rows)]


def test_loss_curves_are_running_means_of_the_arms_that_trained():
    language = realistic(rows=60).spanish
    curves = {"embed": [4.0, 2.0] * 15, "partial@tickets": [3.0] * 30}
    axes = losses("es", language, curves).figure.axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(lines) == ["Embed Tuning", "Partial Tuning"]
    assert list(lines["Embed Tuning"]) == [4.0] + [3.0] * 29, "a window of 2 of 30 updates"


def test_bars_of_coverage_and_time_are_those_of_the_summary():
    language = comparison(rows=60).spanish
    arms = {spec: arm for spec, arm in language["arms"].items() if spec != "untuned"}
    left, right = costs("es", language).figure.axes
    assert [bars[0].get_width() for bars in left.containers] == [arm["coverage"][0] or 0 for arm in arms.values()]
    widths = [bars[0].get_width() for bars in right.containers[: 2 * len(arms)]]
    assert widths == [arm["seconds"][name][0] for arm in arms.values() for name in ("from_scratch", "making")]
    assert [text.get_text() for text in left.texts][-1] == "no rows", "LoRA"


def test_ecdf_marks_the_statistic_of_scipy_where_scipy_finds_it():
    rows = realistic(tickets=6, rows=50).rows["es"]
    for panel, shift in zip(row_figures.ecdf("es", rows).figure.axes, rows.shifts, strict=True):
        expected = scipy.stats.ks_2samp(shift.before, shift.after)
        (at, _), (before, after) = panel.lines[2].get_data()
        assert abs(after - before) == pytest.approx(expected.statistic, abs=1e-12)
        assert at == pytest.approx(expected.statistic_location)


def test_histogram_counts_every_row_once_and_parts_tickets_at_the_threshold():
    data = realistic(rows=500).rows["es"]
    others, tickets = row_figures.histogram("es", data).figure.axes[0].containers
    assert sum(bar.get_height() for bar in others) == 445
    assert sum(bar.get_height() for bar in tickets) == 55
    assert all(bar.get_x() >= data.threshold - 0.5 / 576 - 1e-9 for bar in tickets if bar.get_height())
    assert all(bar.get_x() < data.threshold - 0.5 / 576 - 1e-9 for bar in others if bar.get_height())


def test_labels_of_tickets_do_not_overlap():
    figure = next(each.figure for each in drawn(realistic(rows=500)) if each.name == "frequency-es")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = figure.axes[0].texts
    assert len(labels) >= 10
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    for place, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:place]) == 0, labels[place].get_text()


def test_bars_reach_as_far_as_the_scores_and_every_arm_is_named():
    language = comparison(rows=60).spanish
    left, _ = scores("es", language).figure.axes
    widths = [bar.get_width() for bars in left.containers for bar in bars]
    assert widths == [found["scores"]["nll"]["value"] for found in language["arms"].values()]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels[3:7] == ["Partial Tuning", "Frequency Tuning", "Random rows", "Partial Tuning (KS) @18"]


def sized(rows: int, nll: float) -> dict:
    found = {**arm("partial@tickets", rows), "trained_parameters": [rows * 576]}
    return {**found, "scores": {**found["scores"], "nll": {"value": nll, "low": nll - 0.1, "high": nll + 0.2}}}


ENDS = {"untuned": arm("untuned"), "embed": arm("embed")}


def curves(arms: dict) -> dict:
    language = {"name": "Spanish", "arms": {**ENDS, **arms}, "tickets": {"dimension": 576}}
    return {bars.get_label(): bars for bars in sizes("es", language).figure.axes[0].containers}


def test_arms_stand_by_size_whatever_their_order_and_two_of_the_same_size_are_both_drawn():
    """partial@0.05 may select 18 rows, as many as partial@18. The tie must not compare dicts, which have no order."""
    arms = {
        "partial@64": sized(64, 2.2),
        "partial@18": sized(18, 2.5),
        "partial@tickets": sized(18, 2.6),
        "partial@1e-06": sized(0, 4.0),
        "partial@18:lr=0.1": sized(18, 9.0),
    }
    (line, *_) = curves(arms)["Partial Tuning (KS)"].lines
    assert [tuple(point) for point in line.get_xydata()] == [(18, 2.5), (18, 2.6), (64, 2.2)]


def test_error_bars_reach_from_the_lower_to_the_upper_end():
    bars = curves({"frequency@18": sized(18, 2.5)})["Frequency Tuning"]
    assert bars.lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([2.4, 2.7])


def shown_labels(each: Picture) -> set[str]:
    """The labels of the ticks within the axes, as drawn."""
    each.figure.draw_without_rendering()
    return {
        label.get_text()
        for axes in each.figure.axes
        for ticks in (axes.xaxis.get_major_ticks(), axes.xaxis.get_minor_ticks())
        for label in (tick.label1 for tick in ticks)
        if label.get_visible()
    }


def test_labels_of_logarithmic_axes_are_plain_numbers():
    language = comparison(rows=60).spanish
    counts = shown_labels(ticket_counts("es", language))
    assert {"0.001", "0.01", "0.1"} <= counts
    assert not [label for label in counts | shown_labels(sizes("es", language)) if "$" in label]

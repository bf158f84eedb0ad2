"""The figures of the report: what they count, mark and write."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import pytest
import scipy.stats
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report_samples import realistic

from kslottery_fast.lab.report import picture, row_figures
from kslottery_fast.lab.report.figures import pictures
from kslottery_fast.lab.report.picture import token_label


def test_figures_leave_matplotlib_as_it_was_and_do_not_need_pyplot():
    before = dict(matplotlib.rcParams)
    pictures(realistic(tickets=5, rows=50))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, kslottery_fast.lab.report.report; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("token", ["翻译", "🙂", "مر"])
def test_glyphs_that_the_font_lacks_become_escapes_in_figures(token):
    label = token_label(token)
    assert set(label) <= {chr(code) for code in picture._glyphs()}


def test_ecdf_marks_the_statistic_of_scipy_where_scipy_finds_it():
    data = realistic(tickets=6, rows=50)
    for shift in data.shifts:
        expected = scipy.stats.ks_2samp(shift.before, shift.after)
        at, before, after = row_figures._ks_location(shift)
        assert abs(after - before) == pytest.approx(expected.statistic, abs=1e-12)
        assert at == pytest.approx(expected.statistic_location)


def test_histogram_counts_every_row_once_and_parts_tickets_at_the_threshold():
    data = realistic(rows=500)
    axes = row_figures.histogram(data).figure.axes[0]
    others, tickets = axes.containers
    assert sum(bar.get_height() for bar in others) == 445
    assert sum(bar.get_height() for bar in tickets) == 55
    assert all(bar.get_x() >= data.threshold - 0.5 / 576 - 1e-9 for bar in tickets if bar.get_height())
    assert all(bar.get_x() < data.threshold - 0.5 / 576 - 1e-9 for bar in others if bar.get_height())


def test_labels_of_tickets_do_not_overlap():
    figure = next(each.figure for each in pictures(realistic(rows=500)) if each.name == "frequency")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = figure.axes[0].texts
    assert len(labels) >= 10
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    for place, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:place]) == 0, labels[place].get_text()

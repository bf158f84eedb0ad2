"""Figures of a comparison on made-up numbers: what is drawn, and that nothing in the grid stops it."""

import pytest
from kslottery_fast.lab.report.compare_figures import score_by_rows, ticket_counts


def arm(rows: int, nll: float) -> dict:
    scores = {
        "nll": {"value": nll, "low": nll - 0.1, "high": nll + 0.2},
        "bleu_first_line": {"value": 30.0, "low": 29.0, "high": 32.0},
    }
    return {"rows": [rows], "trained_parameters": [rows * 8], "scores": scores}


def curve(arms: dict, label: str) -> list[tuple[float, float]]:
    language = {"name": "Spanish", "arms": arms, "tickets": {"dimension": 8}}
    left, _ = score_by_rows("es", language).figure.axes
    (found,) = (bars for bars in left.containers if bars.get_label() == label)
    return [tuple(point) for point in found.lines[0].get_xydata()]


def test_arms_stand_by_falling_size_whatever_their_order_and_two_of_the_same_size_are_both_drawn():
    """partial@18 beside partial@0.05 that happens to select 18 rows: dicts have no order to break the tie by."""
    arms = {
        "untuned": arm(0, 4.0),
        "embed": arm(300, 2.0),
        "partial@64": arm(64, 2.2),
        "partial@18": arm(18, 2.5),
        "partial@0.05": arm(18, 2.6),
        "partial@1e-06": arm(0, 4.0),
    }
    assert curve(arms, "Partial Tuning (KS)") == [(18, 2.5), (18, 2.6), (64, 2.2)]


def test_error_bars_reach_from_the_lower_to_the_upper_end():
    language = {"untuned": arm(0, 4.0), "embed": arm(300, 2.0), "frequency@18": arm(18, 2.5)}
    picture = score_by_rows("es", {"name": "Spanish", "arms": language, "tickets": {"dimension": 8}})
    (bars,) = picture.figure.axes[0].containers
    assert bars.lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([2.4, 2.7])


def shown_labels(picture):
    """The labels of the ticks that stand within the axes, as they are drawn."""
    picture.figure.draw_without_rendering()
    return {
        label.get_text()
        for axes in picture.figure.axes
        for ticks in (axes.xaxis.get_major_ticks(), axes.xaxis.get_minor_ticks())
        for label in (tick.label1 for tick in ticks)
        if label.get_visible()
    }


def test_labels_of_logarithmic_axes_are_plain_numbers():
    tickets = {
        "alpha": 0.05,
        "by_alpha": [{"alpha": alpha, "counts": [rows]} for alpha, rows in ((0.001, 8), (0.05, 200), (0.8, 2_000))],
        "by_steps": [{"step": step, "counts": [step]} for step in (50, 100)],
    }
    counts = ticket_counts("es", {"name": "Spanish", "tickets": tickets})
    assert {"0.001", "0.01", "0.1"} <= shown_labels(counts)
    arms = {"untuned": arm(0, 4.0), "embed": arm(300, 2.0), "partial@200": arm(200, 2.5), "partial@300": arm(300, 2.4)}
    scores = score_by_rows("es", {"name": "Spanish", "arms": arms, "tickets": {"dimension": 8}})
    assert not [label for label in shown_labels(counts) | shown_labels(scores) if "$" in label]

"""The table of an experiment in the terminal, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from report_samples import ARMS, compared, comparison, realistic, top_k
from rich.console import Console

from kslottery_fast.evaluation.evaluate import Evaluation
from kslottery_fast.evaluation.intervals import Interval
from kslottery_fast.lab.report.page import latex_text
from kslottery_fast.lab.report.tables import csv_text, print_summary, score_header, score_row
from kslottery_fast.lab.report.words import arm_label


def printed(summary: dict[str, Any], folder: Path, width: int = 80, *, colour: bool = False) -> str:
    stream = io.StringIO()
    system: Any = "truecolor" if colour else None
    console = Console(file=stream, width=width, color_system=system, force_terminal=colour, highlight=False)
    print_summary(summary, console, folder)
    assert ("\x1b" in stream.getvalue()) == colour
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("colour", [True, False])
def test_the_table_of_a_plain_run_fits_the_terminal_and_shows_all_models(width, colour, tmp_path):
    text = printed(realistic(rows=60).summary, tmp_path, width, colour=colour)
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"…(?![+-])", text), "nothing is cut off: only intervals of differences have this sign"
    for spec, (label, values, *_) in ARMS.items():
        for word in arm_label(spec, {"label": label}).split():
            assert word in text
        assert f"{values[0]:.3f}" in text
        assert f"{values[1]:.2f}" in text
    assert "1.66–1.91" in text
    assert "Selected: 55 tickets at alpha = 0.05." in text


def test_findings_existing_files_and_verdict_follow_the_table(tmp_path):
    (tmp_path / "report.html").touch()
    (tmp_path / "adapter").mkdir()
    summary = realistic(rows=60).summary
    lines = printed(summary, tmp_path, 500).splitlines()
    assert "- At alpha = 0.05 the KS test selects 55" in "\n".join(lines)
    assert lines[-5:-3] == [f"Report:       {tmp_path}/report.html", f"PEFT adapter: {tmp_path}/adapter"]
    assert lines[-3:] == ["", f"Verdict: {summary['verdict']}", summary["on_test"]]
    assert summary["verdict"] == summary["findings"][0]
    assert "\n".join(lines).count(summary["verdict"]) == 1


def test_top_k_is_marked_and_a_title_with_brackets_is_printed_as_it_is(tmp_path):
    text = printed({**top_k().summary, "title": "my [bold]model[/bold]"}, tmp_path, 100)
    assert "18 rows of largest D, none significant at alpha = 0.05" in text
    assert "my [bold]model[/bold]" in text


def test_a_comparison_shows_scores_gains_and_costs_of_every_arm_and_language(tmp_path):
    text = printed(comparison("ca", rows=60).summary, tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("Arm ") == 3 + 3 + 2, "the mean over languages has no costs"
    for words in (
        "\nSpanish\n",
        "\nCatalan\n",
        "\nMean over languages\n",
        "- Catalan: On the validation pairs, 18 trained",
    ):
        assert words in text
    assert "Gain, paraphrased" in text
    wide = printed(comparison(rows=60).summary, tmp_path, 300)
    (row,) = (line for line in wide.splitlines() if line.startswith("Partial Tuning (KS) @18"))
    for number in ("1.863", "9.11", "31.27", "+8.95", "10.4 k", "7 min 42 s", "1.5 GB"):
        assert number in row


def test_selectors_are_shown_with_their_paired_differences_and_what_they_say(tmp_path):
    summary = comparison("ca", rows=60).summary
    group = compared("64", 64, 3, ks=2.1, frequency=2.0, contribution=1.9, random=3.0)
    group["models"][3] |= {"arms": ["random@64", "random@64:draw=1"], "range": [2.9, 3.1]}
    summary["languages"]["ca"]["selectors"] = [group, compared("64", 64, 3, copied=True, ks=2.5, frequency=2.49)]
    lines = [" ".join(line.split()) for line in printed(summary, tmp_path).splitlines()]
    assert sum(line.startswith("Rows Chosen by NLL NLL minus") for line in lines) == 3
    for line in (
        "64 trained KS 2.100 +0.100 worse –",
        "64 trained frequency 2.000 – -0.100 better",
        "64 trained contribution 1.900 -0.100 better -0.200 better",
        "64 trained random rows 3.000 +1.000 worse +0.900 worse",
        "2 draws draws 2.90–3.10 +0.960…+1.040 +0.860…+0.940",
        "64 copied KS 2.500 +0.010 tie –",
    ):
        assert line in lines, line
    found = {(line["language"], line["arm"]): line for line in csv.DictReader(io.StringIO(csv_text(summary)))}
    line = found["ca", "partial@64"]
    assert (float(line["against_frequency.nll"]), line["against_frequency.outcome"]) == (pytest.approx(0.1), "worse")
    assert (line["against_ks.nll"], line["against_ks.outcome"]) == ("", "")
    mean = found["ca", "random@64 (mean of 2 draws)"]
    assert (float(mean["nll"]), float(mean["against_ks.nll.low"])) == (3.0, pytest.approx(0.86))
    assert found["mean", "frequency@18"]["against_ks.outcome"] == "better"


def test_the_widest_numbers_are_printed_whole_on_80_columns(tmp_path):
    summary = comparison(rows=60).summary
    arms = summary["languages"]["es"]["arms"]
    for arm in arms.values():
        arm |= {"rows": [2319, 2359], "coverage": [0.5, 0.69], "trained_parameters": [1_350_000], "label": "Long " * 6}
        arm["seconds"] = {"making": [1004.0], "from_scratch": [1610.0]}
        arm["peak_memory_mb"] = {"from_scratch": 2600}
    text = printed(summary, tmp_path)
    for number in ("2,319…2,359", "50…69", "1.35 M", "16 min 44 s", "26 min 50 s", "2.6 GB"):
        assert text.count(number) == len(arms), number


def test_rows_that_come_one_by_one_stand_under_their_headings_on_80_columns():
    intervals = [Interval(value, value, value) for value in (1.7814, 14.05, 18.11, 36.41, 39.02, 0.97, 36.4)]
    found = Evaluation(*intervals, outputs=[], sentence_nll=[], sentence_tokens=[], signatures={})
    header, row = score_header(), score_row("Partial Transfer (KS)", found)
    assert row.split("(KS)")[1].split() == ["1.781", "14.05", "18.11", "36.41", "39.02", "97%", "36"]
    assert max(map(len, [*header, row])) <= 80
    for heading, value in (("1st line", "18.11"), ("Chars", "36")):
        ends = header[1].index(heading) + len(heading)
        assert row[:ends].endswith(value) or row.endswith(value)
    above, below = score_row("es, seed 0: Partial Tuning (KS) @0.05", found).split("\n")
    assert above == "es, seed 0: Partial Tuning (KS) @0.05"
    assert below == row.replace("Partial Transfer (KS)", " " * 21)


def test_csv_holds_a_line_for_every_arm_of_every_language_and_of_their_mean():
    summary = comparison("ca", rows=60).summary
    lines = list(csv.DictReader(io.StringIO(csv_text(summary))))
    arms = summary["languages"]["ca"]["arms"]
    assert [(line["language"], line["arm"]) for line in lines] == [(c, a) for c in ("es", "ca", "mean") for a in arms]
    line = lines[len(arms) + 3]
    assert float(line["nll"]) == arms["partial@tickets"]["scores"]["nll"]["value"]
    assert float(line["against_embed.nll.high"]) == arms["partial@tickets"]["against_embed"]["nll"]["high"]
    assert float(line["rows"]) == pytest.approx((55 + 90 + 6) / 3)
    assert lines[-1]["rows"] == ""


def test_latex_has_balanced_tables_and_no_sign_of_the_data_is_read_as_a_command():
    summary = {**comparison("ca", rows=60).summary, "title": "a_model & {100%} $x$ \\input{x}"}
    tex = latex_text(summary)
    for name in ("tabular", "table*"):
        assert tex.count(f"\\begin{{{name}}}") == tex.count(f"\\end{{{name}}}") == 3
    assert tex.count("a\\_model \\& \\{100\\%\\} \\$x\\$ \\textbackslash{}input\\{x\\}; Spanish.") == 1
    first = tex[: tex.index("\\bottomrule")].splitlines()
    body, head = first[first.index("\\midrule") + 1 :], first[first.index("\\toprule") + 1]
    assert len(body) == len(summary["languages"]["es"]["arms"])
    assert {line.replace("\\&", "").count("&") for line in [head, *body]} == {11}
    assert all(line.endswith(" \\\\") for line in [head, *body])
    assert "Partial Tuning (KS) @18 & 13\\% & 10.4 k & 1.863 {\\scriptsize [1.73--1.99]}" in tex
    assert "$\\Delta$ NLL (Embed)" in head
    assert "$-$0.5" in tex

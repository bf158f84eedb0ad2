"""What ``kslottery compare`` and ``report`` print about a comparison, and what a dry run leaves: nothing."""

import json

import pytest

from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.cli.explain import describe


def test_help_says_what_the_validation_pairs_are_for(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "number of validation pairs, on which advice and effects of tickets are based" in text


def test_the_terminal_shows_scores_gains_costs_and_advice(finished_arguments, capsys):
    assert cli.main(finished_arguments) == 0
    printed = capsys.readouterr().out
    for words in ("Norm-matched", "Quality part", "Memory", "- The tickets are unstable", "report.html", "Verdict: "):
        assert words in printed
    assert cli.main([*finished_arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "kslottery-summary/1"


def test_arms_are_listed_and_a_dry_run_names_the_jobs_and_leaves_nothing(arguments, tmp_path, capsys):
    assert cli.main(["compare", "--list-arms"]) == 0
    assert "frozen@SIZE" in capsys.readouterr().out
    words = arguments(tmp_path / "dry", "--dry-run", "--arms", "partial@4", "--seed", "3")
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert "Partial Tuning (KS) @4" in printed.out
    assert "to do" in printed.out
    assert f"{tmp_path / 'dry'}: 14 jobs, 0 finished already" in printed.out
    assert printed.err == ""
    assert not (tmp_path / "dry").exists()
    assert cli.main([*words, "--json"]) == 0
    assert [job["seconds"] for job in json.loads(capsys.readouterr().out)["jobs"]] == [None] * 14


def test_a_dry_run_in_a_folder_shows_what_is_done_and_refuses_other_settings(finished, finished_arguments, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert cli.main([*finished_arguments, "--dry-run"]) == 0
    assert "to do" not in capsys.readouterr().out
    assert cli.main([*finished_arguments, "--dry-run", "--steps", "5"]) == 2
    assert "steps: 3 there, 5 here" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_more_rows_than_there_are_is_an_error_that_names_the_arm(arguments, tmp_path, capsys):
    assert cli.main(arguments(tmp_path / "out", "--arms", "frequency@4000", "--seed", "0")) == 2
    error = capsys.readouterr().err
    assert "arm frequency@4000 asks for 4,000 rows, but only" in error


def test_info_explains_folder_and_summary_of_a_comparison(finished, capsys):
    assert cli.main(["info", str(finished)]) == 0
    assert "an experiment" in capsys.readouterr().out
    for path in finished.rglob("*"):
        assert describe(path)["what"], path
    assert cli.main(["info", str(finished / "summary.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["grid"]["seeds"] == [0, 1]
    assert "frozen@4" in found["nll_per_token"]["Spanish"]


def test_report_prints_the_tables_of_a_comparison_and_overwrites_nothing(finished, capsys):
    page, text = finished / "report.html", (finished / "report.html").read_text(encoding="utf-8")
    page.write_text("old", encoding="utf-8")
    assert cli.main(["report", str(finished)]) == 0
    assert "Norm-matched" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == "old"
    page.write_text(text, encoding="utf-8")

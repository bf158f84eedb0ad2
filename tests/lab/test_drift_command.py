"""`kslottery drift`: a table, files, and an exit code for drift; bad input is one line."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from kslottery_fast import ks_frames
from kslottery_fast.lab.cli import main as cli


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The files reference.parquet and current.csv in the working directory, in which the column age drifted."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    numbers = {"age": rng.normal(40, 9, 200), "income": rng.normal(size=200)}
    reference = pd.DataFrame({**numbers, "city": ["Rome", "Oslo"] * 100})
    current = reference.sample(frac=0.9, random_state=0).assign(age=lambda frame: frame["age"] + 20)
    reference.to_parquet("reference.parquet")
    current.to_csv("current.csv", index=False)
    return reference, current


def test_it_shows_the_columns_and_exits_with_3_if_one_drifted(tables, capsys):
    assert cli.main(["drift", "reference.parquet", "current.csv"]) == 3
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "1 of 2 columns drifted (p < 0.05)"
    assert lines[1].split() == ["column", "n", "m", "missing", "D", "location", "sign", "p", "drifted"]
    assert lines[3].split()[:3] == ["age", "200", "180"]
    assert lines[3].split()[-1] == "yes"
    assert lines[4].split()[-1] == "no"
    assert lines[5] == "not tested: city (not numeric: text)"
    assert "Testing columns: done" in captured.err
    assert cli.main(["drift", "reference.parquet", "current.csv", "--exit-zero", "--limit", "1", "-q"]) == 0
    captured = capsys.readouterr()
    assert "... and 1 more" in captured.out
    assert captured.err == ""
    assert cli.main(["drift", "reference.parquet", "current.csv", "--columns", "income", "--limit", "0"]) == 0


def test_results_are_printed_or_written_as_json_or_csv(tables, tmp_path, capsys):
    expected = ks_frames(*tables, alpha=0.01, correction="bh", method="asymp").to_dict()["columns"]
    options = ["--alpha", "0.01", "--correction", "bh", "--method", "asymp"]
    command = ["drift", "reference.parquet", "current.csv", *options]
    before = set(tmp_path.iterdir())
    assert cli.main([*command, "--json"]) == 3
    assert set(tmp_path.iterdir()) == before
    content = json.loads(capsys.readouterr().out)
    assert (content["drifted"], content["columns"]) == (["age"], expected)
    assert cli.main([*command, "--output", "out/drift.json"]) == 3
    assert json.loads((tmp_path / "out" / "drift.json").read_text()) == content
    assert "Written to out/drift.json" in capsys.readouterr().out
    assert cli.main([*command, "--output", "drift.csv"]) == 3
    read = pd.read_csv("drift.csv", float_precision="round_trip")
    assert read["adjusted_pvalue"].tolist() == [line["adjusted_pvalue"] for line in expected]
    capsys.readouterr()
    assert cli.main(["info", "out/drift.json", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["what"], facts["drifted"]) == ("the columns of two tables that `kslottery drift` tested", ["age"])


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("nowhere.parquet", [], "reference nowhere.parquet: no such file"),
        (
            "reference.parquet",
            ["--columns", "agee"],
            "columns names 'agee', which reference.parquet lacks; did you",
        ),
        ("reference.parquet", ["--columns", "city"], "no column can be tested: city (not numeric: text)"),
        ("reference.parquet", ["--json", "--output", "a.json"], "--json writes no file"),
        ("reference.parquet", ["--output", "a.txt"], "expected a name that ends in .json or .csv"),
        ("reference.parquet", ["--output", "current.csv"], "current.csv exists; give another --output"),
        ("other.csv", [], "other.csv and current.csv have no column in common"),
        ("reference.parquet", ["--correction", "holm"], "invalid choice: 'holm'"),
    ],
)
@pytest.mark.usefixtures("tables")
def test_bad_input_is_one_line_and_exit_code_2(reference, options, message, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    try:
        code = cli.main(["drift", reference, "current.csv", *options, "-q"])
    except SystemExit as stop:  # argparse ends by itself
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("kslottery: error: ")
    assert message in lines[0]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

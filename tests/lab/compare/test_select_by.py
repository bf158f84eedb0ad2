"""``kslottery run --select-by``: the rows of another selector are what the run is about."""

import json

import pytest

from kslottery_fast.base.ticket_ids import read_ticket_ids
from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.tickets.selected_rows import SelectedRows
from kslottery_fast.tickets.tickets import Tickets

SIZES = {"train": 32, "validation": 4, "test": 8, "steps": 6, "batch-size": 8, "micro-batch-size": 4}
SIZES |= {"max-new-tokens": 8, "n-bootstrap": 20, "contribution-examples": 16}


@pytest.fixture(scope="module")
def run(compare_world, tmp_path_factory, quick_run):
    """A run with five rows of largest contribution: its folder, and its summary."""
    output = tmp_path_factory.mktemp("run") / "run"
    arguments = [
        *("run", "--model", str(compare_world / "model"), "--corpus", str(compare_world / "pairs.tsv")),
        *(word for name, size in SIZES.items() for word in (f"--{name}", str(size))),
        *("--alpha", "0.3", "--learning-rate", "0.05", "--dtype", "float32", "--output", str(output)),
        *("--select-by", "contribution", "--rows", "5"),
    ]
    with quick_run():
        assert cli.main(arguments) == 0
    return output, json.loads((output / "summary.json").read_text(encoding="utf-8"))


def test_its_arms_and_files_are_those_of_the_selector(run, capsys):
    output, summary = run
    language = summary["languages"]["es"]
    assert list(language["arms"]) == [
        *("untuned", "embed", "transfer-contribution@5", "contribution@5", "frequency@5", "random@5")
    ]
    assert summary["grid"]["select_by"] == language["select_by"] == "contribution"
    found = RowContributions.load(output / "stages" / "es.0.contribution" / "contributions.safetensors")
    assert found.examples == 16
    rows = SelectedRows.load(output / "tickets.json")
    assert list(rows) == found.ranked[:5].tolist()
    assert rows.selected_by == "contribution"
    assert rows.values.tolist() == found.contribution[found.order[:5]].tolist()
    assert len(rows.token_texts) == 5
    adapter = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert sorted(rows) in map(sorted, adapter["trainable_token_indices"].values())
    assert read_ticket_ids(output / "adapter" / "tickets.json").token_ids.tolist() == list(rows)
    assert cli.main(["info", str(output / "tickets.json")]) == 0
    assert "5 of 320 rows: the largest contribution" in capsys.readouterr().out


def test_verdict_and_findings_are_about_its_rows_and_compare_them_with_the_controls(run):
    language = run[1]["languages"]["es"]
    assert [(entry["control"], entry["own"]) for entry in language["controls"]] == [
        *(("frequency@5", "contribution@5"), ("random@5", "contribution@5"))
    ]
    assert list(language["gain"]["shares"]) == ["transfer-contribution@5", "contribution@5"]
    assert [one["arm"] for one in (language["recommendation"] or {"kept": []})["kept"]] in (
        [],
        ["transfer-contribution@5", "contribution@5", "frequency@5"],
    )
    assert not any("partial" in sentence for sentence in language["advice"])


def test_the_certificate_is_still_about_the_tickets_of_the_ks_test(run, capsys):
    output, _ = run
    assert Tickets.load(output / "stages" / "es.0.certificate" / "tickets.json").selected_by == "alpha"
    assert cli.main(["certify", str(output)]) == 0
    assert cli.main(["report", str(output)]) == 0
    capsys.readouterr()

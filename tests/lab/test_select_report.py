"""`kslottery select`: the summary of all rows, and the page, the CSV file and the figure that it writes."""

from __future__ import annotations

import csv
import json

import matplotlib.image
import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import Tickets, compare_tables
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.tickets import SelectedRows


@pytest.fixture
def pair(tiny_tokenizer, tmp_path, monkeypatch):
    """Files a.safetensors and b.safetensors of one table in the working directory, and the tables."""
    monkeypatch.chdir(tmp_path)
    before = torch.randn(320, 32, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[10:35] += 3
    after[35:50] *= 1.01
    after[50] = before[50].flip(0)
    for name, table in (("a", before), ("b", after)):
        save_file({"model.embed_tokens.weight": table}, f"{name}.safetensors")
    return before, after


def refused(capsys, *arguments: str) -> str:
    assert cli.main(["select", "a.safetensors", "b.safetensors", *arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_all_files_are_written_and_say_the_same(pair, tiny_tokenizer, tmp_path, capsys):
    tiny_tokenizer.save_pretrained("words")
    files = ["--report", "out/rows.html", "--csv", "out/rows.csv", "--plot", "out/rows.png", "--tokenizer", "words"]
    assert cli.main(["select", "a.safetensors", "b.safetensors", *files, "--limit", "2", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = compare_tables(*pair, tokenizer=tiny_tokenizer)
    assert lines[: len(found.summary().splitlines())] == found.summary().splitlines()
    assert lines[-1] == "Written to tickets.json, out/rows.html, out/rows.csv, out/rows.png"
    assert Tickets.load("tickets.json") == found.tickets()
    assert Tickets.load("tickets.json").token_texts == tuple(found.tokens.texts[row] for row in found.tickets())
    with (tmp_path / "out" / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == found.statuses()
    assert matplotlib.image.imread("out/rows.png").shape[1] == 1400
    assert (tmp_path / "out" / "rows.html").read_text().count('<td class="text">significant</td>') == 25
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rows.csv", "rows.html", "rows.png"]


def test_a_table_without_rows_is_refused_and_nothing_is_written(pair, tmp_path, capsys):
    save_file({"model.embed_tokens.weight": torch.zeros(0, 32)}, "a.safetensors")
    before = sorted(tmp_path.iterdir())
    assert "is a table without rows" in refused(capsys, "--rows", "shared")
    assert sorted(tmp_path.iterdir()) == before


def test_the_summary_is_in_the_json_and_the_json_is_still_a_ticket_file(pair, tmp_path, capsys):
    assert cli.main(["select", "a.safetensors", "b.safetensors", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["comparison"]["rows"] == compare_tables(*pair).numbers
    assert Tickets.from_dict(content) == compare_tables(*pair).tickets()
    assert cli.main(["select", "a.safetensors", "b.safetensors", "--json", "--select-by", "l2", "-k", "3"]) == 0
    (tmp_path / "rows.json").write_text(capsys.readouterr().out)
    assert list(SelectedRows.load("rows.json")) == list(compare_tables(*pair).l2_rows(3))


def test_a_frozen_table_is_called_frozen(pair, capsys):
    assert cli.main(["select", "a.safetensors", "a.safetensors", "--plot", "a.png", "--report", "a.html"]) == 0
    captured = capsys.readouterr()
    assert "No row moved: the embedding was frozen, or both are the same model." in captured.out.splitlines()
    assert captured.out.splitlines()[0] == "320 rows of 32 numbers: 320 identical (100%)."


def test_a_file_that_cannot_be_written_is_refused_before_any_work(pair, tmp_path, capsys):
    (tmp_path / "old.csv").write_text("mine")
    assert "old.csv exists; give another --output, or --force" in refused(capsys, "--csv", "old.csv")
    assert "--report . is a folder; give a file" in refused(capsys, "--report", ".")
    assert "--csv and --plot are both x; give two files" in refused(capsys, "--csv", "x", "--plot", "x")
    both = refused(capsys, "--csv", "tickets.json")
    assert "--output and --csv are both tickets.json; give two files" in both
    assert "--plot /proc/x.png cannot be written in /proc" in refused(capsys, "--plot", "/proc/x.png")
    message = refused(capsys, "--json", "--csv", "new.csv", "--force")
    assert "--json writes no file; leave out --force and --csv, or --json" in message
    assert not (tmp_path / "tickets.json").exists()
    assert cli.main(["select", "a.safetensors", "b.safetensors", "--csv", "old.csv", "--force"]) == 0
    assert (tmp_path / "old.csv").read_text().startswith("token_id,status,count,")


def test_a_tokenizer_that_does_not_fit_is_refused_at_once_and_one_that_lacks_tickets_is_noted(
    pair, tiny_tokenizer, tmp_path, capsys
):
    tiny_tokenizer.save_pretrained("words")
    save_file({"model.embed_tokens.weight": pair[0][:200]}, "a.safetensors")
    save_file({"model.embed_tokens.weight": pair[1][:200]}, "b.safetensors")
    message = refused(capsys, "--tokenizer", "words")
    assert "the tokenizer has 320 tokens, but the table has 200 rows" in message
    assert not (tmp_path / "tickets.json").exists()
    taller = torch.cat([pair[0], pair[0]])
    save_file({"model.embed_tokens.weight": taller}, "a.safetensors")
    save_file({"model.embed_tokens.weight": taller + 3}, "b.safetensors")
    assert cli.main(["select", "a.safetensors", "b.safetensors", "--tokenizer", "words"]) == 0
    assert "note: token ids are shown without their texts: the tokenizer has no token" in capsys.readouterr().err
    assert Tickets.load("tickets.json").token_texts is None


def test_a_page_that_fails_leaves_no_file(pair, tmp_path, monkeypatch):
    from kslottery_fast.lab.report import comparison_page

    def fails(_found):
        raise RuntimeError("made up")

    monkeypatch.setattr(comparison_page, "comparison_page", fails)
    with pytest.raises(RuntimeError, match="made up"):
        cli.main(["select", "a.safetensors", "b.safetensors", "--csv", "out/rows.csv", "--report", "out/rows.html"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]

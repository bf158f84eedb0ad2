"""`kslottery select`: writes the tickets of two checkpoints and shows them; bad input is one line."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import InputError, Tickets, attach_rows, get_rows, ks_select
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.tickets import SelectedRows


@pytest.fixture
def models(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    """Folders `before` (sharded) and `after` (one file, with a tokenizer) in the working directory."""
    monkeypatch.chdir(tmp_path)
    before, after = tiny_llama(), tiny_llama()
    with torch.no_grad():
        after.model.embed_tokens.weight[10:35] += 3
    before.save_pretrained("before", max_shard_size="40KB")
    after.save_pretrained("after")
    tiny_tokenizer.save_pretrained("after")
    return ks_select(before.model.embed_tokens, after.model.embed_tokens)


def error(capsys, *arguments: str, progress: bool = True) -> str:
    try:
        code = cli.main(["select", *arguments])
    except SystemExit as stop:  # argparse ends by itself
        code = stop.code
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert progress or len(lines) == 1
    assert lines[-1].startswith("kslottery: error: ")
    return lines[-1]


def tickets_of(lines: list[str]) -> list[str]:
    """The printed lines from the tickets on, which follow the summary of all rows."""
    return lines[next(place for place, line in enumerate(lines) if re.match(r"[\d,]+ (tickets?|of) ", line)) :]


def test_it_writes_the_tickets_with_texts_and_shows_the_first_ones(models, tiny_tokenizer, tmp_path, capsys):
    assert cli.main(["select", "before", "after", "--limit", "3", "--output", "found/tickets.json"]) == 0
    tickets = Tickets.load(tmp_path / "found" / "tickets.json")
    assert tickets == models
    assert list(tickets.token_texts) == models.tokens(tiny_tokenizer)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "320 rows of 32 numbers: 295 identical (92.2%), 25 significant (7.81%)."
    lines = tickets_of(lines)
    assert lines[0].startswith("25 tickets of 320 rows")
    assert lines[1].split() == ["rank", "token", "id", "token", "D", "p"]
    rank, token, _text, statistic, pvalue = lines[3].split()
    assert (rank, int(token)) == ("1", models.token_ids[0])
    assert float(statistic) == pytest.approx(models.statistic[0].item(), abs=1e-4)
    assert float(pvalue) == pytest.approx(models.pvalue[0].item(), rel=0.05)
    assert lines[-2:] == ["... and 22 more (--limit)", "Written to found/tickets.json"]
    assert "Comparing rows: done" in captured.err


def test_json_prints_the_tickets_file_and_writes_nothing(models, tmp_path, capsys):
    options = ["--method", "asymp", "--alpha", "0.01"]
    before = set(tmp_path.iterdir())
    assert cli.main(["select", "before", "after", "--json", "--top-k", "4", *options]) == 0
    assert set(tmp_path.iterdir()) == before
    content = json.loads(capsys.readouterr().out)
    assert Tickets.from_dict(content).token_texts
    assert content["token_ids"] == models.token_ids[:4].tolist()
    assert (content["method"], content["selected_by"], content["alpha"]) == ("asymp", "top_k", 0.01)
    assert cli.main(["select", "before", "after", "--json", "--correction", "bonferroni", *options]) == 0
    assert json.loads(capsys.readouterr().out)["correction"] == "bonferroni"


def test_rows_of_largest_l2_shift_are_written_as_rows_that_are_taken_as_token_ids(models, tiny_llama, tmp_path, capsys):
    with torch.no_grad():
        tuned = tiny_llama()
        tuned.model.embed_tokens.weight[100] += 1e-3  # no ticket
    tuned.save_pretrained("little")
    assert cli.main(["select", "before", "little", "--select-by", "l2", "-k", "1"]) == 0
    rows = SelectedRows.load("tickets.json")
    assert (list(rows), rows.selected_by, rows.vocab_size) == ([100], "l2", 320)
    assert rows.values.tolist() == pytest.approx([1e-3 * 32**0.5], rel=1e-3)
    assert get_rows(attach_rows(tuned, "tickets.json")).token_ids.tolist() == [100]
    lines = tickets_of(capsys.readouterr().out.splitlines())
    assert lines[0] == "1 of 320 rows: the largest L2 shift"
    assert lines[1].split() == ["rank", "token", "id", "L2", "shift"]
    with pytest.raises(InputError, match="the rows were selected by 'l2' and have no KS statistics"):
        Tickets.load("tickets.json")
    assert cli.main(["select", "before", "after", "--select-by", "l2", "--top-k", "30", "--json"]) == 0
    captured = capsys.readouterr()
    assert "note: only 25 rows moved, k asked for 30" in captured.err
    assert sorted(json.loads(captured.out)["token_ids"]) == list(range(10, 35))


def test_tickets_of_the_output_head_are_selected_on_request(models, tiny_llama, tmp_path, capsys):
    before, tuned = tiny_llama(), tiny_llama()
    with torch.no_grad():
        tuned.lm_head.weight[[7, 200]] += 3
    tuned.save_pretrained("tuned")
    assert cli.main(["select", "before", "tuned", "--table", "output", "--output", "head.json"]) == 0
    tickets = Tickets.load("head.json")
    assert tickets == ks_select(before.lm_head.weight, tuned.lm_head.weight, table="output")
    assert (sorted(tickets), tickets.table) == ([7, 200], "output")
    assert "rows of the output head" in tickets_of(capsys.readouterr().out.splitlines())[0]
    assert cli.main(["select", "before", "tuned", "--table", "output", "--select-by", "l2", "-k", "1", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (len(content["token_ids"]), content["table"]) == (1, "output")
    assert cli.main(["select", "before", "after", "--table", "output"]) == 0
    assert len(Tickets.load("tickets.json")) == 0, "the input embedding moved, the head did not"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select-by", "l2"], "--select-by l2 needs -k N, the number of rows"),
        (["--select-by", "gradient"], "--select-by gradient needs the gradients of the training, which checkpoints do"),
        (
            ["--select-by", "frequency", "-k", "3"],
            "--select-by frequency needs the training texts, which",
        ),
        (["--select-by", "contribution"], "call kslottery_fast.row_contributions, or choose --select-by ks or l2"),
    ],
)
def test_selectors_that_need_more_than_checkpoints_say_what(arguments, message, capsys):
    assert message in error(capsys, "before", "after", *arguments)


def test_without_a_tokenizer_the_table_has_ids_alone(models, tmp_path, capsys):
    for file in (tmp_path / "after").glob("token*"):
        file.unlink()
    assert cli.main(["select", "before", "after/model.safetensors"]) == 0
    assert tickets_of(capsys.readouterr().out.splitlines())[1].split() == ["rank", "token", "id", "D", "p"]
    assert Tickets.load("tickets.json").token_texts is None


def test_a_tokenizer_may_lie_elsewhere_and_must_be_one(models, tiny_tokenizer, tmp_path, capsys):
    (tmp_path / "after" / "tokenizer.json").write_text("{}")
    assert cli.main(["select", "before", "after"]) == 0
    assert (
        "note: token ids are shown without their texts: the tokenizer in after cannot be loaded"
        in capsys.readouterr().err
    )
    tiny_tokenizer.save_pretrained("elsewhere")
    assert cli.main(["select", "before", "after", "--tokenizer", "elsewhere", "--force"]) == 0
    assert Tickets.load("tickets.json").token_texts == tuple(models.tokens(tiny_tokenizer))
    assert "before holds no tokenizer" in error(capsys, "before", "after", "--tokenizer", "before", "--force")


def test_a_tokenizer_of_after_that_is_damaged_leaves_that_of_before(models, tiny_tokenizer, tmp_path, capsys):
    (tmp_path / "after" / "tokenizer.json").write_text("{}")
    tiny_tokenizer.save_pretrained("before")
    assert cli.main(["select", "before", "after"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "note: the texts of tokens are those of BEFORE: the tokenizer in after cannot be loaded" in said
    assert Tickets.load("tickets.json").token_texts == tuple(models.tokens(tiny_tokenizer))


def test_a_tokenizer_of_after_that_cannot_be_fetched_leaves_that_of_before(
    models, tiny_tokenizer, tmp_path, capsys, monkeypatch
):
    from kslottery_fast.integrations import tokenizers

    def folder(*places):
        if str(places[0]) == "after":
            raise InputError("after: the Hub does not answer")
        return whole(*places)

    whole = tokenizers.tokenizer_folder
    tiny_tokenizer.save_pretrained("before")
    monkeypatch.setattr(tokenizers, "tokenizer_folder", folder)
    assert cli.main(["select", "before", "after"]) == 0
    assert "those of BEFORE: after: the Hub does not answer" in " ".join(capsys.readouterr().err.split())
    assert Tickets.load("tickets.json").token_texts == tuple(models.tokens(tiny_tokenizer))


def test_two_names_for_the_tensor(models, tmp_path, capsys):
    save_file({"x": torch.randn(320, 32)}, "x.safetensors")
    assert cli.main(["select", "before", "x.safetensors", "--tensor", "model.embed_tokens.weight,x"]) == 0
    tensors = ("--tensor", "model.embed_tokens.weight,y")
    assert "x.safetensors has no tensor y" in error(capsys, "before", "x.safetensors", *tensors, "--json")
    for names in ("a,b,c", "a,", ",", ""):
        message = error(capsys, "before", "x.safetensors", "--tensor", names)
        assert f"argument --tensor: {names!r} is neither one name nor two names with a comma" in message


def test_nothing_selected_says_why(models, capsys):
    assert cli.main(["select", "before", "after", "--alpha", "1e-30"]) == 0
    captured = capsys.readouterr()
    assert "note: no row of 32 numbers can be significant at alpha 1e-30" in captured.err
    assert tickets_of(captured.out.splitlines())[0].startswith("0 tickets of 320 rows")
    assert len(Tickets.load("tickets.json")) == 0


def test_a_file_that_exists_is_overwritten_only_with_force(models, capsys):
    assert cli.main(["select", "before", "after"]) == 0
    message = error(capsys, "before", "after", "--top-k", "2")
    assert "tickets.json exists; give another --output, or --force to overwrite" in message
    assert len(Tickets.load("tickets.json")) == 25
    assert cli.main(["select", "before", "after", "--top-k", "2", "--force"]) == 0
    assert len(Tickets.load("tickets.json")) == 2
    assert "--output after is a folder" in error(capsys, "before", "after", "--output", "after")


def test_an_output_that_cannot_be_written_is_refused_before_the_selection(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kslottery_fast.tickets.comparison.compare_checkpoints", None)
    (tmp_path / "file").write_text("mine")
    for output in ("file/tickets.json", "file/deeper/tickets.json", "x" * 5000, "/proc/tickets.json"):
        before = set(tmp_path.rglob("*"))
        shown = output if len(output) < 100 else f"{'x' * 120}...{'x' * 60}"
        message = error(capsys, "before", "after", "--output", output)
        assert f"--output {shown} cannot be written in " in message
        assert message.endswith("; name another")
        assert set(tmp_path.rglob("*")) == before

    def refused(**_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    message = error(capsys, "before", "after", "--output", "new/folder/tickets.json")
    assert f"--output new/folder/tickets.json cannot be written in {tmp_path}: Permission denied" in message
    assert not (tmp_path / "new").exists()


def test_bad_input_is_one_line_and_writes_nothing(models, tmp_path, capsys):
    for name, words in (("AFTER", ("before", "nowhere")), ("BEFORE", ("nowhere", "after"))):
        assert error(capsys, *words, progress=False).startswith(
            f"kslottery: error: {name} is nowhere: no such file or folder, and no repository of the Hugging Face Hub"
        )
    message = error(capsys, "before", "after", "--tokenizer", "nowhere", progress=False)
    assert message == "kslottery: error: --tokenizer nowhere: no such folder"
    assert "argument --alpha: 2 is not between 0 and 1" in error(capsys, "before", "after", "--alpha", "2")
    assert "argument -k/--top-k: 0 is not an integer of at least 1" in error(capsys, "before", "after", "--top-k", "0")
    both = error(capsys, "before", "after", "--top-k", "3", "--correction", "bh")
    assert "correction is 'bh' and top_k is 3" in both
    assert "argument --method: invalid choice: 'fast'" in error(capsys, "before", "after", "--method", "fast")
    assert "argument --limit: -1 is not an integer of at least 0" in error(capsys, "before", "after", "--limit", "-1")
    assert "argument --correction" in error(capsys, "before", "after", "--correction", "holm")
    assert not (tmp_path / "tickets.json").exists()


def test_ctrl_c_promises_nothing_to_go_on_with(models, monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("kslottery_fast.tickets.comparison.compare_checkpoints", interrupted)
    assert cli.main(["select", "before", "after"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "kslottery: interrupted"

"""The command line: bad input is one line and exit code 2, and `info` explains what a run writes."""

import json
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from kslottery_fast.lab.cli import main as cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "0"], "argument --alpha: 0 is not between 0 and 1, such as 0.05; see kslottery run --help"),
        (["--alpha", "two"], "argument --alpha: 'two' is not a number"),
        (["--rows", "few"], "argument --rows: 'few' is not a number of rows of at least 1, 'alpha' or 'enough'"),
        (["--rows", "0"], "argument --rows: '0' is not a number of rows"),
        (["--select-by", "size"], "argument --select-by: invalid choice: 'size'"),
        (["--contribution-examples", "0"], "argument --contribution-examples: 0 is not an integer of at least 1"),
        (["--steps", "0"], "argument --steps: 0 is not an integer of at least 1"),
        (["--steps", "1.5"], "argument --steps: '1.5' is not an integer"),
        (["--learning-rate", "-1"], "argument --learning-rate: -1 is not a positive number"),
        (["--stage1-beta2", "1"], "argument --stage1-beta2: 1 is not a number of at least 0 and below 1, such as"),
        (["--stage1-eps", "0"], "argument --stage1-eps: 0 is not a positive number"),
        (["--stage1-eps", "1e-46"], "stage1_eps is 1e-46; expected a positive number in the range of float32"),
        (["--seed", str(2**32)], "argument --seed: 4294967296 is not an integer of at least 0 and at most"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--batch-size", "12"], "batch_size is 12; expected a multiple of micro_batch_size, 8"),
        (["--model", "smollm2-135"], "unknown model 'smollm2-135'; did you mean smollm2-135m?"),
        (["--target", "ex"], "unknown language 'ex'; did you mean eu (Basque), et (Estonian), "),
        (["--corpus", "missing.tsv"], "unknown corpus 'missing.tsv'"),
        (["--template", "{source} {oops}"], "{oops}"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_trained(arguments, message, tmp_path, capsys):
    output = tmp_path / "run"
    try:
        code = cli.main(["run", "--output", str(output), *arguments])
    except SystemExit as stop:  # argparse ends by itself
        code = stop.code
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("kslottery: error: ")
    assert message in last
    assert not output.exists()


def test_an_unknown_model_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # which read the environment when imported
    corpus = tmp_path / "pairs.tsv"
    corpus.write_text("".join(f"word {i}\tpalabra {i}\n" for i in range(40)), encoding="utf-8")
    sizes = ["--train", "20", "--validation", "4", "--test", "8"]
    output = tmp_path / "run"
    code = cli.main(["run", "--model", "no/such-model", "--corpus", str(corpus), "--output", str(output), *sizes])
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert last.startswith("kslottery: error: ")
    assert "no/such-model" in last


def test_ctrl_c_says_how_to_go_on_and_exits_with_130(monkeypatch, capsys, tmp_path):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("kslottery_fast.lab.experiment.plan.Experiment.work", interrupted)
    assert cli.main(["run", "--output", str(tmp_path / "run")]) == 130
    assert "the same command resumes the experiment" in capsys.readouterr().err


def test_help_and_version_answer_in_a_source_tree_that_nobody_installed(monkeypatch, capsys):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.delitem(sys.modules, "kslottery_fast._C", raising=False)  # which knows its version
    for words, expected in (("--help", "usage"), ("--version", "kslottery-fast unknown (not installed)")):
        with pytest.raises(SystemExit, match="0"):
            cli.main([words])
        assert capsys.readouterr().out.startswith(expected)


def test_info_without_a_path_says_which_kernels_are_active_and_why_not_cuda(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["native_core"] == "loaded"
    assert facts["cpu_kernels"] in ("avx512", "avx2", "baseline")
    assert facts["cuda_kernels"].startswith(("yes", "no: "))


def test_info_names_what_it_does_not_know(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.json").write_text("[1]")
    (tmp_path / "c.json").write_text('{"x": 1}')
    (tmp_path / "d.safetensors").write_text("x")
    (tmp_path / "e.json").write_text("{")
    for name, message in {
        "missing": "no such file or folder",
        "a.txt": "is a file that no command writes",
        "b.json": "is JSON, but not a file that a command writes",
        "c.json": "is JSON, but not a file that a command writes",
        "d.safetensors": "is not a safetensors file",
        "e.json": "is not valid JSON",
        ".": "is a folder that no command writes; expected an experiment, a stage, an adapter",
    }.items():
        assert cli.main(["info", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_completion_knows_the_commands_when_a_shell_asks(monkeypatch):
    asked = []
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setitem(sys.modules, "argcomplete", SimpleNamespace(autocomplete=asked.append))
    assert cli.main([]) == 0
    assert "certify" in asked[0].format_help()


@pytest.mark.parametrize(
    ("old", "new"), [("--targets=xx", "--target"), ("--seeds=0", "--seed"), ("--top-k=3", "--fallback-top-k")]
)
def test_names_of_version_0_1_work_with_a_note_and_are_not_in_the_help(old, new, tmp_path, capsys):
    words = ["compare", "--dry-run", "--arms", "untuned", "--output", str(tmp_path / "run"), old]
    assert cli.main(words) == (2 if "xx" in old else 0)  # the value is read
    assert f"kslottery: note: {old.partition('=')[0]} is now called {new}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    assert f"{old.partition('=')[0]} " not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["select", "scan", "run", "compare", "report", "certify", "info"])
def test_the_help_of_every_command_has_an_example_that_is_read_and_the_common_options(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 90
    assert "--json" in text
    assert "-q, --quiet" in text
    examples = [line.split()[1:] for line in text.partition("\nexample")[2].splitlines()[1:]]
    assert examples
    for words in examples:
        assert cli.parser().parse_args(words).run is not None


def test_what_is_needed_is_checked_before_anything_is_fetched(tmp_path, capsys, monkeypatch):
    """The corpus is a catalogue, which would be downloaded; the model folder is misspelt."""
    monkeypatch.setattr("kslottery_fast.lab.data.corpora.fetch_wheel", None)
    assert cli.main(["run", "--model", str(tmp_path / "modle"), "--output", str(tmp_path / "run")]) == 2
    assert f"model '{tmp_path / 'modle'}': no such file or folder" in capsys.readouterr().err
    assert cli.main(["compare", "--source", "de", "--output", str(tmp_path / "run")]) == 2
    assert "the catalogues translate from English, not from German" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert cli.main(["run", "--output", str(tmp_path / "file")]) == 2
    assert "is a file; give a new or empty folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_system_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "scan.json")

    monkeypatch.setattr("kslottery_fast.lab.cli.explain.describe", full)
    assert cli.main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "kslottery: error: scan.json: No space left on device\n"

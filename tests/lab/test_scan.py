"""`kslottery scan`: the KS test on the rows of all matrices; what is written, shown and left out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import matplotlib.image
import pytest
import torch
from matplotlib.colors import to_rgba
from safetensors.torch import save_file

from kslottery_fast import InputError, ks_statistics
from kslottery_fast.ks.significance import critical_count
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.report.picture import TICKET
from kslottery_fast.lab.report.scan_figure import MAX_KINDS, scan_figure
from kslottery_fast.tickets.scan import Scan, TensorShift, mean_d, scan_checkpoints


@pytest.fixture(scope="module")
def models(tiny_llama, tmp_path_factory):
    """A tiny LLaMA before and after a change; `after` is sharded."""
    root = tmp_path_factory.mktemp("scan")
    before, after = tiny_llama(), tiny_llama()
    with torch.no_grad():
        after.model.embed_tokens.weight[:50] += 1
        after.model.layers[0].mlp.up_proj.weight += 0.3
        after.model.layers[1].mlp.up_proj.weight[::2] += 0.5
    before.save_pretrained(root / "before")
    after.save_pretrained(root / "after", max_shard_size="40KB")
    states = [{name: value.detach() for name, value in model.state_dict().items()} for model in (before, after)]
    return root / "before", root / "after", states


@pytest.mark.parametrize("block_bytes", [1, 3000, 1 << 20])
def test_every_figure_is_that_of_the_whole_matrix(models, block_bytes):
    before, after, states = models
    scan = scan_checkpoints(before, after, alpha=0.1, block_bytes=block_bytes)
    expected = {name for name, value in states[0].items() if value.ndim == 2}
    assert {shift.name for shift in scan.tensors} == expected
    for shift in scan.tensors:
        first, second = (state[shift.name] for state in states)
        h = ks_statistics(first, second)
        d = first.shape[1]
        assert (shift.rows, shift.dimension) == tuple(first.shape)
        assert shift.changed_rows == int((h > 0).sum())
        assert shift.significant_rows == int((h >= critical_count(d, 0.1)).sum())
        assert shift.mean_d == pytest.approx(h.double().mean().item() / d)
        assert shift.max_d == h.max().item() / d
        if shift.changed_rows:
            assert shift.mean_d_changed == pytest.approx(h[h > 0].double().mean().item() / d)
        else:
            assert shift.mean_d_changed is None
        assert (shift.nan_rows, shift.inf_rows) == (0, 0)
    assert {vector.name for vector in scan.vectors} == states[0].keys() - expected
    assert scan.not_2d == 0
    assert scan.notes == []


def test_the_embedding_is_first_the_head_last_and_layers_between_them_in_order(models):
    scan = scan_checkpoints(*models[:2])
    assert [shift.embedding for shift in scan.tensors].count(True) == 1
    assert scan.tensors[0].embedding
    assert scan.tensors[0].kind == "embed_tokens"
    assert scan.tensors[-1].kind == "lm_head"
    layers = [shift.layer for shift in scan.tensors[1:-1]]
    assert layers == sorted(layers)
    assert set(layers) == {0, 1}
    assert {shift.kind for shift in scan.tensors if shift.layer == 0} == {
        shift.kind for shift in scan.tensors if shift.layer == 1
    }


@pytest.fixture
def odd_pair(tmp_path, monkeypatch):
    """a.safetensors and b.safetensors in the working directory: most of what cannot be compared is in them."""
    monkeypatch.chdir(tmp_path)
    common = {"h.0.w.weight": torch.randn(9, 64), "h.0.bias": torch.zeros(3), "conv": torch.zeros(2, 2, 2, 2)}
    common |= {"ids": torch.arange(4), "empty": torch.zeros(0)}
    short = torch.randn(5, 3)  # p of the largest h of 3 + 3 numbers is 0.1
    first = {**common, "short": short, "old": torch.zeros(2, 2), "q": torch.zeros(4, 8).to(torch.int8)}
    first |= {"resized": torch.zeros(4, 8), "wte.weight": torch.randn(20, 16), "norm": torch.ones(3)}
    second = first | {
        "new": torch.zeros(2, 2),
        "resized": torch.zeros(5, 8),
        "short": short + 10,
        "norm": torch.zeros(2),
    }
    second["wte.weight"] = first["wte.weight"].clone()
    second["wte.weight"][[3, 4], 0] = torch.nan
    second["wte.weight"][[4, 5, 6, 7], 1] = torch.inf
    del second["old"]
    save_file(first, "a.safetensors")
    save_file(second, "b.safetensors")
    return "a.safetensors", "b.safetensors"


def test_what_cannot_be_compared_is_told_and_why(odd_pair):
    scan = scan_checkpoints(*odd_pair)
    assert (scan.only_before, scan.only_after) == (["old"], ["new"])
    assert (scan.other_shape, scan.quantized, scan.not_2d) == (["norm", "resized"], ["q"], 2)
    assert [vector.name for vector in scan.vectors] == ["conv", "h.0.bias"]
    shifts = {shift.name: shift for shift in scan.tensors}
    assert list(shifts) == ["wte.weight", "short", "h.0.w.weight"]
    assert shifts["wte.weight"].nan_rows == 2
    assert shifts["wte.weight"].inf_rows == 3  # the fourth has NaN too
    assert shifts["wte.weight"].changed_rows == 3
    assert shifts["wte.weight"].mean_d == pytest.approx(3 / 16 / 18)
    assert shifts["short"].significant_rows is None
    assert shifts["short"].significant_share is None
    assert shifts["short"].changed_rows == 5
    assert shifts["h.0.w.weight"].significant_share == 0


def test_the_table_names_what_is_not_in_it(odd_pair, capsys):
    assert cli.main(["scan", *odd_pair]) == 0
    out = capsys.readouterr().out
    for line in (
        "*: the input embedding",
        "no test: rows so short that none could reach p < 0.05",
        "WARNING: NaN in 1 matrix, left out: wte.weight (2 rows)",
        "WARNING: Inf in 1 matrix, counted as values: wte.weight (3 rows)",
        "not compared, only in a.safetensors: old",
        "not compared, only in b.safetensors: new",
        "not compared, of different shapes: norm, resized",
        "--rows shared compares the rows that matrices of different heights both have",
        "not compared, not of floats (quantized?): q",
        "not compared, neither matrices nor floats: 2 tensors",
        "Written to scan: scan.json, scan.csv, scan.png",
    ):
        assert line in out.splitlines()
    assert "note:" not in out
    written = {entry["name"]: entry for entry in json.loads(Path("scan/scan.json").read_text())["tensors"]}
    assert (written["wte.weight"]["nan_rows"], written["wte.weight"]["inf_rows"]) == (2, 3)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json is not the config of a model"),
        ('{"vocab_size": 21}', "wte.weight is [20, 16], but config.json has vocab_size 21"),
    ],
)
def test_the_embedding_that_is_not_marked_is_told_and_why(odd_pair, capsys, config, reason):
    Path("config.json").write_text(config)
    scan = scan_checkpoints(*odd_pair)
    assert not any(shift.embedding for shift in scan.tensors)
    (note,) = scan.notes
    assert note.startswith("the input embedding is not marked: ")
    assert reason in note
    assert scan.to_json()["notes"] == [note]
    assert cli.main(["scan", *odd_pair]) == 0
    assert f"note: {note}" in capsys.readouterr().out.splitlines()


def test_json_csv_picture_and_terminal_agree(models, tmp_path, capsys):
    before, after, _ = models
    folder = tmp_path / "out"
    assert cli.main(["scan", str(before), str(after), "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert "Comparing all tensors, MiB: done" in captured.err
    for options in ([], ["--force", "--quiet"]):  # an older scan is overwritten
        assert cli.main(["scan", str(before), str(after), "--output", str(folder), *options]) == 0
    assert capsys.readouterr().err.count("Comparing all tensors, MiB: done") == 1
    assert json.loads((folder / "scan.json").read_text()) == content
    with (folder / "scan.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    matrices, vectors = (content[kind] for kind in ("tensors", "vectors"))
    assert [line["name"] for line in lines] == [entry["name"] for entry in matrices + vectors]
    assert [float(line["max_d"]) for line in lines[: len(matrices)]] == [entry["max_d"] for entry in matrices]
    assert [float(line["max_abs"]) for line in lines[len(matrices) :]] == [entry["max_abs"] for entry in vectors]
    assert Scan.from_json(content).to_json() == content
    assert Scan.load(folder) == Scan.load(folder / "scan.json") == Scan.from_json(content)
    assert matplotlib.image.imread(folder / "scan.png").std() > 0.01
    assert cli.main(["scan", str(before), str(after), "--output", str(folder), "--force"]) == 0
    out = capsys.readouterr().out
    assert "embed_tokens *" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert out.count("mlp.up_proj") == 2
    assert out.startswith(f"3 of {len(content['tensors'])} matrices changed\n")
    assert "self_attn" not in out, "what did not change is not in the table"
    assert cli.main(["scan", str(before), str(before), "--output", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    unchanged = (
        f"0 of {len(matrices)} matrices changed\n0 of {len(vectors)} vectors changed\nsignificant: share of rows"
    )
    assert out.startswith(unchanged)


def test_files_that_exist_are_not_overwritten(models, tmp_path, capsys):
    before, after, _ = models
    (tmp_path / "scan.png").write_text("mine")
    assert cli.main(["scan", str(before), str(after), "--output", str(tmp_path)]) == 2
    assert f"{tmp_path / 'scan.png'} exists; give another --output, or --force to" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scan.png"]
    (tmp_path / "file").write_text("x")
    assert cli.main(["scan", str(before), str(after), "--output", str(tmp_path / "file")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    folder = tmp_path / "file" / "scan"
    assert cli.main(["scan", str(before), str(after), "--output", str(folder)]) == 2
    assert f"--output {folder} cannot be written in {tmp_path / 'file'}: Not a dir" in capsys.readouterr().err


def test_a_path_that_is_not_utf_8_is_escaped(tmp_path, capsys):
    folder = tmp_path / "caf\udce9"  # the byte E9 alone
    folder.mkdir()
    for name in "ab":
        save_file({"x": torch.randn(4, 8)}, str(tmp_path / f"{name}.safetensors"))
        (tmp_path / f"{name}.safetensors").rename(folder / f"{name}.safetensors")
    paths = [str(folder / f"{name}.safetensors") for name in "ab"]
    assert cli.main(["scan", *paths, "--output", str(tmp_path / "scan")]) == 0
    text = (tmp_path / "scan" / "scan.json").read_text(encoding="utf-8")
    assert json.loads(text)["before"] == paths[0]
    assert cli.main(["scan", *paths, "--output", str(folder / "scan")]) == 0
    assert "caf\\udce9/scan: scan.json" in capsys.readouterr().out
    assert cli.main(["scan", *paths, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"] == paths[1]


def test_bad_input_is_named(models, tmp_path):
    before, after, _ = models
    with pytest.raises(InputError, match="alpha is 0: expected"):
        scan_checkpoints(before, after, alpha=0)
    with pytest.raises(InputError, match="method is 'fast'"):
        scan_checkpoints(before, after, method="fast")
    for block_bytes in (0, "x", None, True, 2.0):
        with pytest.raises((InputError, TypeError), match=r"block_bytes is .*: expected .*at least 1"):
            scan_checkpoints(before, after, block_bytes=block_bytes)
    with pytest.raises(InputError, match="no such file or folder"):
        scan_checkpoints(before, tmp_path / "none")
    save_file({"x": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"share no matrix of floats by name and shape: .*other.safetensors has x"):
        scan_checkpoints(before, tmp_path / "other.safetensors")


def test_progress_is_in_mebibytes_of_both_checkpoints(tmp_path):
    for name in "ab":
        save_file({"x": torch.randn(1024, 512), "y": torch.randn(512, 512)}, tmp_path / f"{name}.safetensors")
    calls: list[tuple[int, int]] = []
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    scan_checkpoints(*paths, block_bytes=2 << 20, progress=lambda *call: calls.append(call))
    assert calls == [(2, 6), (4, 6), (6, 6)]


def shift(kind: str, layer: int | None, mean: float | None, rows: int = 10, **fields: object) -> TensorShift:
    values = {
        "embedding": False,
        "nan_rows": 0,
        "inf_rows": 0,
        "changed_rows": rows,
        "significant_rows": 1,
        "max_d": mean,
    }
    return TensorShift(
        f"{layer}.{kind}", "", layer, kind, rows, 64, mean_d=mean, mean_d_changed=mean, **(values | fields)
    )


def test_the_mean_over_matrices_counts_rows_not_matrices():
    assert mean_d([shift("a", 0, 0.1, rows=30), shift("a", 1, 0.5, rows=10), shift("a", 2, None)]) == pytest.approx(0.2)
    assert mean_d([shift("a", 0, None)]) is None


def test_the_picture_holds_any_number_of_kinds_and_always_the_embedding(models):
    scan = scan_checkpoints(*models[:2])
    many = [shift("wte", None, 0.0, embedding=True), *(shift(f"kind {i}", i % 3, i / 100) for i in range(60))]
    picture = scan_figure(scan.__class__(**(scan.__dict__ | {"tensors": many})))
    labels = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert len(labels) == MAX_KINDS
    assert labels[0] == "wte *"
    assert "kind 59" in labels
    assert "kind 1" not in labels
    assert f"the {MAX_KINDS} of 61 kinds" in picture.caption
    flat = scan_figure(scan.__class__(**(scan.__dict__ | {"tensors": many[:1]})))
    assert len(flat.figure.axes) == 1  # no layers, no map
    assert "Orange" not in scan_figure(scan.__class__(**(scan.__dict__ | {"tensors": many[1:]}))).caption


def test_the_picture_marks_both_tables_of_tokens(models):
    picture = scan_figure(scan_checkpoints(*models[:2]))
    labels = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    colours = [bar.get_facecolor() for bar in picture.figure.axes[0].patches]
    marked = [label for label, colour in zip(labels, colours, strict=True) if colour == to_rgba(TICKET)]
    assert marked == ["embed_tokens *", "lm_head +"]
    assert " Orange: the input embedding (*), the output head (+). Percentages" in picture.caption


def test_one_table_alone_is_scanned_on_request(models, tmp_path, capsys):
    before, after, _ = models
    folder = tmp_path / "head"
    assert cli.main(["scan", str(before), str(after), "--table", "output", "--output", str(folder)]) == 0
    (entry,) = json.loads((folder / "scan.json").read_text())["tensors"]
    assert (entry["kind"], entry["head"], entry["embedding"], entry["changed_rows"]) == ("lm_head", True, False, 0)
    assert capsys.readouterr().out.startswith("0 of 1 matrix changed\n")
    assert cli.main(["scan", str(before), str(after), "--table", "input", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["tensors"]
    assert (entry["kind"], entry["head"], entry["changed_rows"]) == ("embed_tokens", False, 50)


def test_the_map_shows_the_mean_of_each_layer_and_nothing_outside_the_layers(models):
    before, after, _ = models
    scan = scan_checkpoints(before, after)
    mesh = scan_figure(scan).figure.axes[1].collections[0]
    values = mesh.get_array().reshape(-1, 2)
    kinds = list(dict.fromkeys(each.kind for each in scan.tensors))
    means = {(each.kind, each.layer): each.mean_d for each in scan.tensors}
    assert values[kinds.index("mlp.up_proj")].tolist() == [means["mlp.up_proj", 0], means["mlp.up_proj", 1]]
    assert values[kinds.index("embed_tokens")].mask.all()


def test_a_checkpoint_compared_with_itself_did_not_move(models):
    scan = scan_checkpoints(models[1], models[1])
    assert len(scan.tensors) == 16
    assert all(each.changed_rows == each.max_d == each.significant_rows == 0 for each in scan.tensors)

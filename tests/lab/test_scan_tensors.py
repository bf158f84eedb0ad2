"""What a scan tells of 3-D tensors, vectors, rows in another order, other names and other heights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kslottery_fast import InputError, ks_statistics
from kslottery_fast.ks.significance import critical_count
from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.cli.scan_table import show_scan
from kslottery_fast.lab.report.scan_figure import scan_figure
from kslottery_fast.tickets.scan import Scan, scan_checkpoints

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
WTE = "model.embed_tokens.weight"


def printed(scan: Scan, capsys: pytest.CaptureFixture[str]) -> str:
    show_scan(scan)
    return capsys.readouterr().out


def saved(folder: Path, *states: dict[str, torch.Tensor]) -> list[str]:
    paths = [str(folder / f"{name}.safetensors") for name in ("before", "after")]
    for path, state in zip(paths, states, strict=True):
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    return paths


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {WTE: (50, 32), EXPERTS: (6, 10, 64), "model.layers.0.norm.weight": (32,), "model.norm.weight": (32,)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("block_bytes", [1, 3 * 2 * 64 * 4, 1 << 20])
def test_each_row_of_each_expert_is_tested_and_one_line_tells_of_all(state, tmp_path, block_bytes):
    tuned = dict(state)
    tuned[EXPERTS] = state[EXPERTS].clone()
    tuned[EXPERTS][1] += 1
    tuned[EXPERTS][4, :3] += 2
    tuned[EXPERTS][5, 7] = state[EXPERTS][5, 7].flip(0)
    paths = saved(tmp_path, state, tuned)
    (shift,) = [each for each in scan_checkpoints(*paths, block_bytes=block_bytes).tensors if each.name == EXPERTS]
    h = ks_statistics(state[EXPERTS].view(60, 64), tuned[EXPERTS].view(60, 64))
    assert (shift.rows, shift.dimension, shift.layer, shift.kind) == (60, 64, 0, "mlp.experts.gate_up_proj")
    assert shift.changed_rows == int((h > 0).sum()) == 13
    assert shift.significant_rows == int((h >= critical_count(64, 0.05)).sum())
    assert (shift.slices, shift.changed_slices, shift.reordered_rows) == (6, 3, 1)
    means = h.view(6, 10).double().mean(dim=1) / 64
    assert (shift.least_slice_d, shift.most_slice_d) == (0.0, pytest.approx(means.max().item()))
    assert shift.mean_d == pytest.approx(means.mean().item())


def test_all_experts_that_were_shifted_are_told(state, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # so that no name is folded
    tuned = state | {EXPERTS: state[EXPERTS] + 1}
    scan = scan_checkpoints(*saved(tmp_path, state, tuned))
    out = printed(scan, capsys)
    assert "1 of 2 matrices changed" in out
    assert "mlp.experts.gate_up_proj [6 of 6]" in " ".join(out.split())
    assert "[3 of 8]: 3 of the 8 matrices in a 3-D tensor, such as the experts of a layer, changed" in out.splitlines()
    assert scan.tensors[1].changed_slices == 6
    assert Scan.from_json(scan.to_json()) == scan
    assert scan_figure(scan).figure.axes


def test_nan_in_an_expert_leaves_out_its_row(state, tmp_path):
    tuned = state | {EXPERTS: state[EXPERTS].clone()}
    tuned[EXPERTS][2, 3, 0] = torch.nan
    tuned[EXPERTS][3] = torch.nan
    (shift,) = [each for each in scan_checkpoints(*saved(tmp_path, state, tuned)).tensors if each.name == EXPERTS]
    assert (shift.nan_rows, shift.changed_rows, shift.changed_slices, shift.most_slice_d) == (11, 0, 0, 0.0)


def test_vectors_tell_whether_they_changed_and_by_how_much(state, tmp_path, capsys):
    state |= {
        "model.scale": torch.tensor(2.0),
        "conv": torch.ones(2, 3, 2, 2),
        "model.layers.1.norm.weight": torch.zeros(4),
    }
    tuned = state | {"model.scale": torch.tensor(3.0), "model.norm.weight": state["model.norm.weight"].clone()}
    tuned["model.norm.weight"][[3, 5]] += torch.tensor([1.0, -2.0])
    tuned["model.layers.1.norm.weight"] = torch.tensor([0.0, 1.0, torch.nan, torch.inf])
    paths = saved(tmp_path, state, tuned)
    scan = scan_checkpoints(*paths, block_bytes=1)
    vectors = {vector.name: vector for vector in scan.vectors}
    assert list(vectors) == [
        "conv",
        "model.norm.weight",
        "model.scale",
        "model.layers.0.norm.weight",
        "model.layers.1.norm.weight",
    ]
    norm = vectors["model.norm.weight"]
    before, after = (each["model.norm.weight"].double() for each in (state, tuned))
    assert (norm.numbers, norm.changed_numbers, norm.shape, norm.not_finite) == (32, 2, (32,), 0)
    assert norm.relative_l2 == pytest.approx(((after - before).norm() / before.norm()).item())
    assert norm.max_abs == pytest.approx(2.0, rel=1e-6)
    assert (vectors["model.scale"].relative_l2, vectors["model.scale"].shape) == (0.5, ())
    assert (vectors["conv"].changed_numbers, vectors["conv"].relative_l2, vectors["conv"].numbers) == (0, 0.0, 24)
    odd = vectors["model.layers.1.norm.weight"]
    assert (odd.layer, odd.kind, odd.changed_numbers, odd.not_finite, odd.relative_l2) == (1, "norm", 1, 2, None)
    lines = printed(scan, capsys).splitlines()
    assert "3 of 5 vectors changed" in lines
    assert ["norm", "2", "of", "3"] in [line.split()[:4] for line in lines]
    assert "WARNING: NaN or Inf in 1 vector, left out: model.layers.1.norm.weight (2 numbers)" in lines
    assert Scan.from_json(scan.to_json()).vectors == scan.vectors


def test_rows_in_another_order_are_counted_and_shown(state, tmp_path, capsys):
    tuned = state | {WTE: state[WTE].clone()}
    tuned[WTE][7:20] = state[WTE][7:20].flip(1)
    tuned[WTE][40] += 1
    paths = saved(tmp_path, state, tuned)
    for block_bytes in (1, 1 << 20):
        scan = scan_checkpoints(*paths, block_bytes=block_bytes)
        shift = scan.tensors[0]
        assert (shift.name, shift.reordered_rows, shift.changed_rows) == (WTE, 13, 1)
    out = printed(scan, capsys)
    assert ["embed_tokens", "*", "50", "32", "1", "13"] in [line.split()[:6] for line in out.splitlines()]
    assert "other order: rows with the same values in another order, which D does not see" in out.splitlines()
    only = saved(tmp_path, state, state | {WTE: state[WTE].flip(1)})
    out = printed(scan_checkpoints(*only), capsys)
    assert out.startswith("1 of 2 matrices changed\n")
    assert ["embed_tokens", "*", "50", "32", "–", "50"] in [line.split()[:6] for line in out.splitlines()]


def test_renamed_tensors_are_compared_and_the_names_are_told(state, tmp_path):
    tuned = {f"language_model.{name}": value for name, value in state.items()}
    tuned[f"language_model.{WTE}"] = state[WTE] + 1
    paths = saved(tmp_path, state, tuned)
    scan = scan_checkpoints(*paths)
    assert [(each.name, each.name_after) for each in scan.tensors] == [
        (WTE, f"language_model.{WTE}"),
        (EXPERTS, f"language_model.{EXPERTS}"),
    ]
    assert scan.tensors[0].changed_rows == 50
    assert scan.renamed == {name: f"language_model.{name}" for name in state}
    assert (scan.only_before, scan.only_after) == ([], [])
    assert scan_checkpoints(*paths, table="input").renamed == {WTE: f"language_model.{WTE}"}
    line = f"names that begin differently in {paths[0]} and {paths[1]}: '' is 'language_model.' (4 tensors)"
    assert line in scan.legend()
    assert Scan.from_json(scan.to_json()).renamed == scan.renamed


def test_a_map_pairs_what_cannot_be_aligned(state, tmp_path, capsys):
    tuned = state | {"tokens": state[WTE] + 1}
    del tuned[WTE]
    paths = saved(tmp_path, state, tuned)
    scan = scan_checkpoints(*paths)
    assert (scan.only_before, scan.only_after) == ([WTE], ["tokens"])
    arguments = ["scan", *paths, "--json", "--map"]
    assert cli.main([*arguments, f"{WTE}=tokens", "--map", "model.norm=model.norm2"]) == 2
    assert "name_map model.norm=model.norm2: " in capsys.readouterr().err
    assert cli.main([*arguments, f"{WTE}=tokens"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["renamed"] == {WTE: "tokens"}
    assert content["tensors"][0]["changed_rows"] == 50
    for wrong, message in (("a", "'a' is not OLD=NEW"), ("a=a", "expected two different names"), ("a=b=c", "OLD=NEW")):
        with pytest.raises(SystemExit):
            cli.main([*arguments, wrong])
        assert message in capsys.readouterr().err
    assert cli.main([*arguments, "a=b", "--map", "a=c"]) == 2
    assert "--map a=c: a is mapped to b already" in capsys.readouterr().err


def test_shared_rows_are_compared_on_request(state, tmp_path, capsys):
    tuned = state | {WTE: torch.cat([state[WTE] + 1, torch.zeros(7, 32)])}
    paths = saved(tmp_path, state, tuned)
    assert scan_checkpoints(*paths).other_shape == [WTE]
    with pytest.raises(InputError, match=r"has another shape in the other checkpoint: rows='shared' \(--rows shared\)"):
        scan_checkpoints(*paths, table="input")
    calls: list[tuple[int, int]] = []
    scan = scan_checkpoints(*paths, rows="shared", progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1]
    shift = scan.tensors[0]
    assert (shift.rows, shift.changed_rows, shift.new_rows, shift.gone_rows) == (50, 50, 7, 0)
    back = scan_checkpoints(*paths[::-1], rows="shared").tensors[0]
    assert (back.rows, back.new_rows, back.gone_rows) == (50, 0, 7)
    assert cli.main(["scan", *paths, "--rows", "shared", "--output", str(tmp_path / "scan")]) == 0
    assert f"not compared, rows that only {paths[1]} has: {WTE} (7)" in capsys.readouterr().out.splitlines()
    assert Scan.load(tmp_path / "scan").rows == "shared"
    alone = saved(tmp_path, {WTE: state[WTE]}, {WTE: tuned[WTE]})
    with pytest.raises(
        InputError, match=r"share no matrix .* such as model.embed_tokens.weight, \[50, 32\] and \[57, 32"
    ):
        scan_checkpoints(*alone)


def test_a_checkpoint_that_was_quantized_is_named_so(state, tmp_path):
    paths = saved(tmp_path, {WTE: state[WTE]}, {WTE: state[WTE].to(torch.int8)})
    with pytest.raises(
        InputError, match=r"1 are not of floats \(model.embed_tokens.weight is .*I8.*\): was one of them"
    ):
        scan_checkpoints(*paths)


def test_a_scan_of_version_0_1_is_read(tmp_path):
    entry = {"name": "h.0.w", "stack": "", "layer": 0, "kind": "w", "rows": 9, "dimension": 64, "embedding": False}
    entry |= {"nan_rows": 0, "inf_rows": 0, "changed_rows": 9, "significant_rows": 9, "mean_d": 0.5, "max_d": 0.6}
    entry |= {"mean_d_changed": 0.5, "head": False, "significant_share": 1.0}
    content = {"format": "kslottery-scan/1", "before": "a", "after": "b", "alpha": 0.05, "method": "auto"}
    content |= {"tensors": [entry], "only_before": [], "only_after": [], "other_shape": [], "quantized": []}
    content |= {"not_2d": 2, "notes": []}
    file = tmp_path / "scan.json"
    file.write_text(json.dumps(content))
    scan = Scan.load(tmp_path)
    assert (scan.tensors[0].significant_share, scan.vectors, scan.rows, scan.not_2d) == (1.0, [], "all", 2)
    assert scan.tensors[0].slices is None
    for change, message in (
        ({"format": "kslottery-tickets/1"}, "not the file of a scan: format is 'kslottery-tickets/1', expected"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"tensors": 3}, "tensors must be a list of objects"),
        ({"tensors": [{"name": "x"}]}, "tensors: missing"),
        ({"tensors": [entry | {"colour": 1}]}, "tensors: got an unexpected keyword argument 'colour'"),
    ):
        file.write_text(json.dumps(content | change))
        with pytest.raises(InputError, match=f"^{file}: {message}"):
            Scan.load(file)
    del content["notes"]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="missing notes"):
        Scan.load(file)
    with pytest.raises(InputError, match=r"none\.json"):
        Scan.load(tmp_path / "none.json")
    with pytest.raises(TypeError, match="path is 3"):
        Scan.load(3)  # type: ignore[arg-type]


def test_checkpoints_that_share_only_vectors_are_compared(state, tmp_path, capsys):
    norm = "model.norm.weight"
    paths = saved(tmp_path, {norm: state[norm], "a": state[WTE]}, {norm: state[norm] + 1, "b": state[WTE][:, :7]})
    scan = scan_checkpoints(*paths)
    assert (scan.tensors, [(each.name, each.changed_numbers) for each in scan.vectors]) == ([], [(norm, 32)])
    assert cli.main(["scan", *paths, "--output", str(tmp_path / "scan")]) == 0
    shown = capsys.readouterr().out
    assert "0 of 0 matrices changed" in shown
    assert "1 of 1 vector changed" in shown
    assert f"only in {paths[0]}: a" in shown
    assert Scan.load(tmp_path / "scan") == scan
    with pytest.raises(InputError, match="input"):
        scan_checkpoints(*paths, table="input")


def test_a_name_prints_as_one_line_whatever_it_holds(tmp_path, capsys):
    names = "matrix\x1b[31m", "vector\nof two lines", "alone\x07"
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    save_file({names[0]: torch.zeros(4, 8), names[1]: torch.zeros(8), names[2]: torch.zeros(2, 2)}, before)
    save_file({names[0]: torch.ones(4, 8), names[1]: torch.ones(8)}, after)
    assert cli.main(["scan", str(before), str(after), "--output", str(tmp_path / "scan")]) == 0
    output = capsys.readouterr().out
    for name in (r"matrix\u001b[31m", r"vector\u000aof two lines", r"alone\u0007"):
        assert name in output
    assert not {"\x1b", "\x07"} & set(output)

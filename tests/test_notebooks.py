"""The notebooks of examples/notebooks run from the first to the last cell, and show what they say."""

from __future__ import annotations

import importlib.util
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import transformers.trainer  # noqa: F401  before marimo, beside which it needs IPython: so tests can follow in any order

pytest.importorskip("marimo", reason="the extra [notebooks] is not installed")
FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="not run from a source tree")


@pytest.fixture
def run(monkeypatch):
    """Run all cells of a notebook in this process, and return its variables."""
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        notebook = importlib.util.module_from_spec(spec)
        with matplotlib.rc_context({"backend": "agg"}):  # the notebook sets a style
            spec.loader.exec_module(notebook)
            _, names = notebook.app.run()
        return SimpleNamespace(**names)

    return run


def test_every_notebook_has_a_test():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"which_tokens", "new_tokens", "ks_lottery"}


def test_the_tokens_that_a_fine_tuning_read_are_those_whose_rows_changed(run):
    names = run("which_tokens")
    assert len(names.tickets) > 5
    assert names.found.numbers["identical"] == 259 - len(names.touched)
    texts = [text.get_text() for text in names.figure.axes[0].get_legend().get_texts()]
    assert texts[1] == f"significant ({len(names.tickets)})"
    drawn = names.figure.axes[0].texts
    labels = [label for text in drawn for label in text.get_text().split(" ")]
    assert len(labels) == 8
    assert {"'j'", "'n'", "<0xA1>"} < set(labels)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(labels)
    names.figure.draw_without_rendering()
    inside = names.figure.bbox
    boxes = [text.get_window_extent() for text in drawn]
    assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y1 <= inside.y1 for box in boxes)


def test_a_token_is_labelled_by_its_text_or_its_byte(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    import tiny

    tokenizer = tiny.tokenizer()
    of_text = {tiny.label(tokenizer, token) for token in tokenizer("a ñ\n</s>")["input_ids"]}
    assert of_text == {"'a'", "' '", "<0xC3>", "<0xB1>", r"'\n'", "'</s>'"}
    labels = {tiny.label(tokenizer, token) for token in range(len(tokenizer))}
    assert len(labels) == 259
    assert {f"<0x{byte:02X}>" for byte in range(128, 256)} < labels


def test_five_new_tokens_are_said_where_they_belong(run):
    names = run("new_tokens")
    assert names.losses[-1] < 0.1 < names.losses[0]
    assert (names.trained.argmax(dim=1) == names.trained.new_tensor(range(5))).all()
    assert names.untrained.diagonal().max() < 0.1
    assert names.fresh_tokenizer.convert_tokens_to_ids("<rojo>") == names.new[3]
    assert len(names.figure.axes) == 3


def test_all_steps_of_the_method_lower_the_held_out_loss_and_are_drawn(run):
    names = run("ks_lottery")
    values = {name: score.interval.value for name, score in names.scores.items()}
    assert next(iter(values)) == "untuned"
    assert len(values) == 6
    assert min(values, key=values.get) == "Embed Tuning"
    for name in ("Partial Transfer", "Partial Tuning"):
        assert values[name] < values["untuned"] - 0.1
    assert 5 < names.k < len(names.active)
    labels = [label.get_text() for label in names.figure.axes[0].get_yticklabels()]
    assert labels[1:3] == [f"Embed Tuning ({len(names.active)})", f"Partial Transfer ({names.k})"]

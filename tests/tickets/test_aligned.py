"""Which tensor is which, where two checkpoints call them differently."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kslottery_fast import InputError
from kslottery_fast.checkpoints.checkpoint import Checkpoint
from kslottery_fast.tickets.aligned import aligned_names, beginnings, check_name_map

LLAMA = {
    "model.embed_tokens.weight": (40, 8),
    "lm_head.weight": (40, 8),
    "model.norm.weight": (8,),
    **{f"model.layers.{i}.self_attn.{kind}_proj.weight": (8, 8) for i in range(12) for kind in "qkvo"},
    **{f"model.layers.{i}.input_layernorm.weight": (8,) for i in range(12)},
}


def renamed(*rules: tuple[str, str], names: dict[str, tuple[int, ...]] = LLAMA) -> dict[str, str]:
    """What each name becomes by the first rule that fits."""
    found = {}
    for name in names:
        old, new = next((rule for rule in rules if name.startswith(rule[0])), ("", ""))
        found[name] = new + name.removeprefix(old)
    return found


def checkpoint(source: str, shapes: dict[str, tuple[int, ...]]) -> Checkpoint:
    """A checkpoint of which nothing but names and shapes is asked."""
    return Checkpoint(source, {name: SimpleNamespace(shape=shape, floats=True) for name, shape in shapes.items()})  # type: ignore[misc]


def align(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]], **name_map: str) -> dict[str, str]:
    return aligned_names(checkpoint("before", before), checkpoint("after", after), check_name_map(name_map))


@pytest.mark.parametrize(
    "expected",
    [
        renamed(("model.", "")),
        renamed(("model.", "model.language_model.")),
        renamed(("", "language_model.")),
        renamed(("", "_orig_mod.")),
        renamed(("", "module.")),
        renamed(("", "base_model.model.")),
        renamed(("model.", "transformer.")),
    ],
    ids=lambda names: next(iter(names.values())),
)
def test_common_renamings_are_aligned_in_both_directions(expected: dict[str, str]) -> None:
    after = {new: LLAMA[old] for old, new in expected.items()}
    assert align(LLAMA, after) == expected
    assert align(after, LLAMA) == {new: old for old, new in expected.items()}


def test_a_model_with_vision_is_aligned_after_its_prefixes_changed() -> None:
    vision = {f"vision_tower.layers.{i}.self_attn.{kind}_proj.weight": (8, 8) for i in range(12) for kind in "qkvo"}
    saved = {new: LLAMA[old] for old, new in renamed(("", "language_model.")).items()} | vision
    rules = ("language_model.model.", "model.language_model."), ("language_model.", ""), ("", "model.")
    expected = renamed(*rules, names=saved)
    loaded = {new: saved[old] for old, new in expected.items()}
    assert align(saved, loaded) == expected
    assert align(loaded, saved) == {new: old for old, new in expected.items()}
    # A text model has the layers of the language model, and not those of the vision tower.
    text = {name.removeprefix("model."): shape for name, shape in LLAMA.items()}
    found = align(text, loaded)
    assert len(found) == len(text)
    assert not any("vision" in name for name in found.values())


def test_layers_stacks_and_shapes_are_never_taken_for_one_another() -> None:
    w = (4, 4)
    assert align({"model.layers.0.w": w}, {"model.layers.1.w": w}) == {}
    assert align({"model.layers.0.w": w}, {"module.model.layers.0.w": (4, 5)}) == {}
    assert align({"encoder.embed.weight": w}, {"decoder.embed.weight": w}) == {}
    assert align({"lm_head.weight": w}, {"score.weight": w}) == {}
    assert align({"a.h.0.w": w}, {"x.a.h.0.w": w, "y.a.h.0.w": w}) == {}, "two that fit as well as each other"
    assert align({"a.h.0.w": w, "b.h.0.w": w}, {"x.h.0.w": w}) == {}
    assert align({"a.h.0.w": w, "b": (1,)}, {"x.a.h.0.w": w, "y.a.h.0.w": w, "x.b": (1,)}) == {
        "a.h.0.w": "x.a.h.0.w",
        "b": "x.b",
    }, "most tensors begin with x."


def test_equal_names_stay_and_shapes_that_differ_follow_the_others() -> None:
    before = {"model.wte.weight": (9, 4), "model.h.0.w": (4, 4), "same": (2,)}
    after = {"wte.weight": (10, 4), "h.0.w": (4, 4), "same": (3,)}
    assert align(before, after) == {"model.wte.weight": "wte.weight", "model.h.0.w": "h.0.w", "same": "same"}


def test_a_map_names_tensors_or_how_names_begin() -> None:
    before = {"encoder.h.0.w": (2, 2), "encoder.wte": (3, 2), "head": (3, 2), "other": (1,)}
    after = {"decoder.h.0.w": (2, 2), "decoder.wte": (3, 2), "out.proj": (3, 2)}
    assert align(before, after) == {}
    assert align(before, after, encoder="decoder", head="out.proj") == {
        "encoder.h.0.w": "decoder.h.0.w",
        "encoder.wte": "decoder.wte",
        "head": "out.proj",
    }
    assert align({"a.x": (1,)}, {"x": (2,)}, a="") == {"a.x": "x"}
    assert align({"x": (1,)}, {"a.x": (2,)}, **{"": "a"}) == {"x": "a.x"}
    assert align({"a.b.x": (1,), "a.y": (1,)}, {"c.x": (1,), "d.y": (1,)}, **{"a": "d", "a.b": "c"}) == {
        "a.b.x": "c.x",
        "a.y": "d.y",
    }, "the longest beginning that fits"


@pytest.mark.parametrize(
    ("name_map", "message"),
    [
        ({"none": "a"}, r"name_map none=a: before has no tensor none and none that begins with none\."),
        ({"mod": "x"}, r"name_map mod=x: before has no tensor mod and none"),
        ({"model": "none"}, r"name_map model=none: after has no tensor none.wte"),
        ({"model": "", "other": "h"}, r"name_map gives model.h and other of before one name, h"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(name_map: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        align({"model.wte": (1,), "model.h": (1,), "other": (1,)}, {"wte": (1,), "h": (1,)}, **name_map)


@pytest.mark.parametrize("name_map", [3, ["a=b"], {"a": 1}, {1: "a"}])
def test_what_is_no_map_of_names_is_refused(name_map: object) -> None:
    with pytest.raises(TypeError, match=r"name_map is .*: expected a dict of names"):
        check_name_map(name_map)


@pytest.mark.parametrize("name_map", [{"": ""}, {"a": "a"}, {"a.": "a"}])
def test_a_map_that_changes_nothing_is_refused(name_map: dict[str, str]) -> None:
    with pytest.raises(InputError, match="expected two different names"):
        check_name_map(name_map)


def test_beginnings_are_counted() -> None:
    assert beginnings(renamed(("model.", "")).items()) == {("model.", ""): len(LLAMA) - 1}


def test_thousands_of_names_are_aligned_in_no_time() -> None:
    many = {f"model.layers.{i}.experts.{e}.w.weight": (2, 2) for i in range(20) for e in range(100)}
    expected = renamed(("", "module."), names=many)
    assert align(many, dict.fromkeys(expected.values(), (2, 2))) == expected

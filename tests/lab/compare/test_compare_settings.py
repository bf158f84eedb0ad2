"""What a comparison may be asked to do, and the error for what it may not."""

import json
from pathlib import Path

import pytest

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.experiment.run_settings import BEFORE_THEY_EXISTED, RunSettings
from kslottery_fast.lab.experiment.settings import ArmSpec, ExperimentSettings, parse_arm


def settings(**changes) -> ExperimentSettings:
    return ExperimentSettings(base=RunSettings(), **changes)


def test_untuned_and_embed_tuning_are_always_there_and_nothing_is_twice():
    found = settings(arms=("partial@18", "embed", "partial@0.05", "partial"))
    assert [str(spec) for spec in found.specs] == ["untuned", "embed", "partial@18", "partial@0.05"]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("partial@18", ArmSpec("partial", 18)),
        ("frequency@active", ArmSpec("frequency", "active")),
        ("random@tickets", ArmSpec("random", "tickets")),
        ("lora@0.01:lr=1e-3", ArmSpec("lora", 0.01, 1e-3)),
        ("full:lr=2e-5", ArmSpec("full", None, 2e-5)),
        ("gradient", ArmSpec("gradient", 0.05)),
        ("contribution@enough", ArmSpec("contribution", "enough")),
        ("full:lr=1.23456789e-5", ArmSpec("full", None, 1.23456789e-5)),
        ("partial@18:lr=3e-2/1e-2:steps=300", ArmSpec("partial", 18, rates=(0.01, 0.03), steps=300)),
        ("prefix@0.05:lr=1e6/1e-2", ArmSpec("prefix", 0.05, rates=(0.01, 1e6))),
        ("random@64:draw=2:lr=0.01", ArmSpec("random", 64, 0.01, draw=2)),
        ("transfer-random@64:draw=0", ArmSpec("transfer-random", 64)),
    ],
)
def test_an_arm_is_read_and_its_text_reads_as_itself(text, spec):
    assert parse_arm(text, 0.05) == spec
    assert parse_arm(str(spec), 0.5) == spec


def test_rates_that_differ_have_names_that_differ_and_round_ones_are_short():
    names = [str(ArmSpec("full", None, rate)) for rate in (1e-3, 1.0000001e-3, 5e-5)]
    assert names == ["full:lr=0.001", "full:lr=0.0010000001", "full:lr=5e-05"]


def test_the_text_of_a_search_is_a_file_name_and_people_see_slashes():
    spec = parse_arm("partial@tickets:lr=1e-2/3e-2/1e-1:steps=300", 0.05)
    assert str(spec) == "partial@tickets:lr=0.01_0.03_0.1:steps=300"
    assert spec.title == "Partial Tuning:lr=0.01/0.03/0.1:steps=300"
    assert list(map(str, spec.candidates)) == [
        f"partial@tickets:lr={rate}:steps=300" for rate in ("0.01", "0.03", "0.1")
    ]
    assert parse_arm("partial@18:lr=0.01", 0.05).candidates == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "partial@18:step=3",
            "arm 'partial@18:step=3': unknown option 'step'; did you mean steps\\? The options are lr=",
        ),
        ("partial@18:", "unknown option ''; the options are lr=RATE\\[/RATE...\\], steps=N, draw=N"),
        ("partial@18:lr=1e-3:lr=1e-2", "option lr is given twice; write several rates as lr=1e-3/3e-3"),
        ("partial@18:steps=3:steps=4", "option steps is given twice; give it once"),
        ("partial@18:lr=1e-3/fast", "learning rate 'fast' is not a positive number such as 1e-3"),
        ("partial@18:lr=1e-3/", "learning rate '' is not a positive number such as 1e-3"),
        ("partial@18:lr=1e-3/0.001", "learning rate 0.001 is given twice; give each rate once"),
        ("partial@18:steps=0", "steps '0' is not an integer of at least 1, such as steps=2"),
        ("partial@18:steps=1.5", "steps '1.5' is not an integer of at least 1"),
        ("random@18:draw=-1", "draw '-1' is not an integer of at least 0, such as draw=2"),
        ("partial@18:draw=1", "partial draws nothing at random; leave out draw, .* random, transfer-random, noise"),
        ("transfer@18:steps=3", "transfer trains nothing and has no number of steps; leave out steps"),
        ("partail@18", "unknown arm 'partail@18'; did you mean partial\\? Write NAME, .* one of untuned, embed, full"),
        ("partial@0", "size '0' is not a number of rows"),
        ("partial@1.5", "size '1.5' is not a number of rows"),
        ("partial@many", "size 'many' is not a number of rows"),
        ("embed@18", "embed has no size; write 'embed'"),
        ("transfer@18:lr=1e-3", "transfer trains nothing and has no learning rate"),
        ("full:lr=-1", "learning rate '-1' is not a positive number"),
        ("full:lr=fast", "learning rate 'fast' is not a positive number"),
        ("partial@18/../../x", "size '18/../../x' is not a number"),
    ],
)
def test_what_is_no_arm_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        settings(arms=(text,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (1, 1)}, "seeds names one twice: 1, 1"),
        ({"seeds": (-1,)}, "seeds has -1"),
        ({"targets": ("es", "es")}, "targets names one twice"),
        ({"targets": ("es", "Spanish")}, "targets names one language twice: es, Spanish"),
        ({"targets": ("Klingonese",)}, "unknown language"),
        ({"effects": -1}, "effects is -1"),
        ({"margin": 1.0}, "margin is 1.0"),
    ],
)
def test_a_bad_grid_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_what_binds_a_folder_is_not_the_grid():
    small, large = settings(seeds=(0,)), settings(seeds=(0, 1), targets=("es", "de"), arms=("full",))
    assert small.binding == large.binding
    assert small.grid != large.grid
    assert "target" not in small.binding


def test_the_settings_that_a_folder_records_read_as_themselves():
    for found in (
        settings(arms=("partial@18", "lora@8:lr=0.001"), seeds=(3, 4), targets=("ca", "es"), effects=0, margin=0.2),
        ExperimentSettings.of_run(RunSettings(target="ca", seed=7, alpha=0.01)),
    ):
        header = json.loads(json.dumps({"settings": found.binding, "grid": found.grid}))
        again = ExperimentSettings.recorded(header, Path("runs/a"))
        assert (again.binding, again.grid, again.specs) == (found.binding, found.grid, found.specs)
    with pytest.raises(InputError, match=r"runs/a/run\.json was written by another version"):
        ExperimentSettings.recorded({"settings": {"alhpa": 1}, "grid": header["grid"]}, Path("runs/a"))


def test_a_folder_from_before_a_setting_existed_reads_as_it_was_made():
    found = settings()
    older = {name: value for name, value in found.binding.items() if name not in BEFORE_THEY_EXISTED}
    read = ExperimentSettings.recorded({"settings": older, "grid": found.grid}, Path("runs/a")).base
    assert (read.stage1_beta2, read.stage1_eps, read.contribution_examples) == (0.999, 1e-8, None)
    assert read.tuning_steps is None


@pytest.mark.parametrize(
    ("options", "arms"),
    [
        (
            {"select_by": "contribution", "rows": 64},
            ["transfer-contribution@64", "contribution@64", "frequency@64", "random@64"],
        ),
        (
            {"select_by": "l2", "rows": "enough"},
            ["transfer-l2@enough", "l2@enough", "frequency@enough", "random@enough"],
        ),
        (
            {"select_by": "frequency"},
            ["transfer-frequency@tickets", "frequency@tickets", "partial@tickets", "random@tickets"],
        ),
        (
            {"rows": 18},
            [
                *("transfer@18", *(f"transfer-contribution@{size}" for size in (18, 64, 200))),
                *("partial@18", "contribution@18", "frequency@18", "random@18"),
            ],
        ),
    ],
)
def test_the_arms_of_a_run_are_those_of_its_selector_and_size_beside_controls(options, arms):
    found = ExperimentSettings.of_run(RunSettings(), **options)
    assert [str(spec) for spec in found.specs] == ["untuned", "embed", *arms]
    assert [str(spec) for spec in found.tuned] == [next(arm for arm in arms if not arm.startswith("transfer"))]
    again = ExperimentSettings.recorded({"settings": found.binding, "grid": found.grid}, Path("runs/a"))
    assert (again.grid, again.select_by) == (found.grid, found.select_by)
    assert ("select_by" in found.grid) == (found.select_by != "ks")
    with pytest.raises(InputError, match="select_by is 'size': expected 'ks', 'l2'"):
        ExperimentSettings.of_run(RunSettings(), select_by="size")


def test_the_default_comparison_has_four_selectors_at_four_sizes_and_knows_all_of_its_arms():
    found = settings().specs
    selectors = ("ks", "frequency", "l2", "contribution")
    trained = {(spec.size, spec.facts.selector) for spec in found if spec.facts.trains and spec.facts.selector}
    assert trained == {(size, name) for size in (18, 64, 200, 0.05) for name in selectors} | {(64, "random")}
    others = {spec.name for spec in found if not spec.facts.selector}
    assert others == {"untuned", "embed", "frozen", "lora", "prefix"}


def test_a_run_is_the_default_arms_with_one_seed_and_one_language():
    found = ExperimentSettings.of_run(RunSettings(target="ca", seed=7))
    assert [str(spec) for spec in found.specs] == [
        *("untuned", "embed", "transfer@tickets"),
        *("transfer-contribution@18", "transfer-contribution@64", "transfer-contribution@200"),
        *("partial@tickets", "contribution@tickets", "frequency@tickets", "random@tickets"),
    ]
    assert (found.seeds, found.targets, found.effects, found.paraphrase) == ((7,), ("ca",), 0, False)

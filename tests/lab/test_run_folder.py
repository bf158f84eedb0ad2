"""A run's folder: stages that exist whole or not at all, settings that must fit, one process at a time."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import get_args

import pytest

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json
from kslottery_fast.evaluation.scores import BLEU_TOKENIZERS
from kslottery_fast.integrations.resuming import Checkpoints
from kslottery_fast.lab.experiment.run_folder import KIND, open_run_folder, read_header
from kslottery_fast.lab.experiment.run_settings import BEFORE_THEY_EXISTED, BleuTokenizer, RunSettings, differences

SETTINGS = {"alpha": 0.05, "seed": 0}
GRID = {"seeds": [0]}


def test_a_stage_is_finished_only_when_its_block_ends(tmp_path):
    with open_run_folder(tmp_path / "run", SETTINGS, GRID) as folder:
        with folder.write_stage("select") as stage:
            (stage / "result.txt").write_text("42")
            assert not folder.finished("select")
        assert folder.finished("select")
        assert (folder.stage_path("select") / "result.txt").read_text() == "42"
        assert folder.seconds("select") >= 0


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder:
        with pytest.raises(FileNotFoundError), folder.write_stage("select") as stage:
            (stage / "half.txt").write_text((stage / "missing.txt").read_text())
        assert not folder.finished("select")
        assert list((tmp_path / "stages").iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder, folder.write_stage("corpus"):
        pass
    leftover = tmp_path / "stages" / ".select.abc.tmp"
    leftover.mkdir()
    (leftover / "half.txt").write_text("half")
    (tmp_path / ".summary.json.x.tmp").write_text("{")
    with open_run_folder(tmp_path, SETTINGS, GRID):
        assert not leftover.exists()
        assert not (tmp_path / ".summary.json.x.tmp").exists()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_while_the_header_is_first_written_leaves_a_folder_that_the_same_command_takes_up(tmp_path, moment):
    folder = tmp_path / "run"
    pid = os.fork()
    if pid == 0:
        replace = os.replace

        def killing(self, target):
            if moment == "after":
                replace(self, target)
            os.kill(os.getpid(), signal.SIGKILL)

        Path.replace = killing
        with open_run_folder(folder, SETTINGS, GRID):
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    names = sorted(path.name.partition(".json.")[0] for path in folder.iterdir())
    assert names == ([".lock", ".run"] if moment == "before" else [".lock", "run.json"])
    with open_run_folder(folder, SETTINGS, GRID) as run, run.write_stage("corpus"):
        pass
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "run.json", "stages"]


def test_hidden_files_of_others_are_no_leftovers(tmp_path):
    (tmp_path / ".git").mkdir()
    with pytest.raises(InputError, match="holds other files"), open_run_folder(tmp_path, SETTINGS, GRID):
        pass


def test_other_settings_are_refused_with_the_difference_and_nothing_changes(tmp_path):
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder, folder.write_stage("corpus"):
        pass
    before = (tmp_path / "run.json").read_bytes()
    with (
        pytest.raises(InputError, match=r"other settings \(alpha: 0.05 there, 0.01 here\)"),
        open_run_folder(tmp_path, {**SETTINGS, "alpha": 0.01}, GRID),
    ):
        pass
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_run_that_ends_before_its_first_stage_leaves_no_trace_and_the_corrected_command_works(tmp_path):
    with pytest.raises(InputError, match="klingon"), open_run_folder(tmp_path / "run", {"target": "klingon"}, GRID):
        raise InputError("unknown language klingon")
    assert not (tmp_path / "run").exists()
    with open_run_folder(tmp_path / "run", {"target": "es"}, GRID) as folder, folder.write_stage("corpus"):
        pass
    assert folder.finished("corpus")


def test_settings_bind_only_once_a_stage_is_finished(tmp_path):
    # What kill -9 leaves before the first stage: a header and an empty folder.
    (tmp_path / "stages").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"format": KIND, "settings": {"seed": 1}, "grid": GRID}))
    with open_run_folder(tmp_path, {"seed": 2}, GRID) as folder, folder.write_stage("corpus"):
        pass
    assert read_json(tmp_path / "run.json")["settings"] == {"seed": 2}


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds other files"), open_run_folder(tmp_path, SETTINGS, GRID):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match="is a file"), open_run_folder(tmp_path / "run", SETTINGS, GRID):
        pass


def test_a_foreign_run_json_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format": "somebody-else/7"}')
    with pytest.raises(InputError, match="not of the format"), open_run_folder(tmp_path, SETTINGS, GRID):
        pass


@pytest.mark.parametrize("kind", ["kslottery-run/1", "kslottery-comparison-run/1"])
def test_a_folder_of_version_0_1_is_refused_and_left_alone(tmp_path, kind):
    header = json.dumps({"format": kind, "settings": SETTINGS})
    (tmp_path / "run.json").write_text(header)
    with (
        pytest.raises(InputError, match=r"written by version 0\.1.*run the experiment again in another folder"),
        open_run_folder(tmp_path, SETTINGS, GRID),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == header


def test_the_grid_of_the_last_call_is_recorded_and_binds_nothing(tmp_path):
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder, folder.write_stage("corpus"):
        pass
    larger = {"seeds": [0, 1]}
    with open_run_folder(tmp_path, SETTINGS, larger) as folder:
        assert read_header(tmp_path)["grid"] == GRID
        folder.keep_grid(larger)
    assert read_header(tmp_path) == {"format": KIND, "settings": SETTINGS, "grid": larger}


@pytest.mark.parametrize(
    ("settings", "recorded"),
    [
        ({"corpus": "pairs.tsv", "model": "smollm2-135m"}, True),
        ({"corpus": "catalogues", "model": "./model"}, True),
        ({"corpus": "catalogues", "model": "smollm2-135m"}, False),  # names, although files are called so
        ({"corpus": "catalogues", "model": "HuggingFaceTB/SmolLM2-360M"}, False),
        ({"corpus": "{folder}/pairs.tsv", "model": "{folder}/model"}, False),
    ],
)
def test_the_directory_is_recorded_only_for_relative_paths_that_exist(tmp_path, monkeypatch, settings, recorded):
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.tsv", "model", "catalogues", "smollm2-135m"):
        (tmp_path / name).touch()
    settings = {name: value.format(folder=tmp_path) for name, value in settings.items()}
    with open_run_folder(tmp_path / "run", settings, GRID, keep=True):
        pass
    expected = {"directory": str(tmp_path)} if recorded else {}
    assert read_header(tmp_path / "run") == {"format": KIND, "settings": settings, "grid": GRID, **expected}


def leave_checkpoint(folder, stage):
    checkpoint = folder.checkpoints(stage) / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "complete.json").write_text(json.dumps({"key": "", "seconds": 1000.0, "files": {}}))
    return checkpoint


def test_a_checkpoint_outlives_its_process_and_goes_when_its_stage_is_finished(tmp_path):
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder:
        with folder.write_stage("corpus"):
            pass
        checkpoint = leave_checkpoint(folder, "embed")
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder:
        assert checkpoint.exists()
        with folder.write_stage("embed"):
            assert checkpoint.exists()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_stage_took_the_time_of_all_attempts_that_it_goes_on_from(tmp_path, goes_on):
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder:
        saver = Checkpoints(folder.checkpoints("embed"), "this training", say=lambda _: None)
        checkpoint, key = leave_checkpoint(folder, "embed"), saver.key if goes_on else ""
        (checkpoint / "complete.json").write_text(json.dumps({"key": key, "seconds": 1000.0, "files": {}}))
        with folder.write_stage("embed"):
            assert saver.resume() == (str(checkpoint) if goes_on else None)
        assert (folder.seconds("embed") >= 1000) == goes_on


def test_a_kill_between_a_stage_and_the_end_of_its_checkpoint_leaves_no_checkpoint_to_the_next_call(tmp_path):
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder, folder.write_stage("embed"):
        pass
    kept = leave_checkpoint(folder, "partial")
    leave_checkpoint(folder, "embed")
    with open_run_folder(tmp_path, SETTINGS, GRID):
        assert kept.exists()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["partial"]


def test_a_second_process_is_refused_while_the_first_works(tmp_path):
    # flock locks belong to the open file, so a second open in this process stands for another process.
    with (
        open_run_folder(tmp_path, SETTINGS, GRID),
        pytest.raises(InputError, match="in use by another run"),
        open_run_folder(tmp_path, SETTINGS, GRID),
    ):
        pass


def test_a_full_disk_is_named_and_what_is_finished_stays(tmp_path):
    with open_run_folder(tmp_path, SETTINGS, GRID) as folder, folder.write_stage("select"):
        pass
    with (
        pytest.raises(InputError, match=r"no space left.*to resume"),
        open_run_folder(tmp_path, SETTINGS, GRID) as folder,
        folder.write_stage("certify"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == ["select"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0; expected a number between 0 and 1"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a positive number"),
        ({"tuning_learning_rate": float("inf")}, "tuning_learning_rate is inf"),
        ({"stage1_beta2": 1.0}, "stage1_beta2 is 1.0; expected a number of at least 0 and below 1"),
        ({"stage1_beta2": True}, "stage1_beta2 is True"),
        ({"stage1_eps": 0.0}, "stage1_eps is 0.0; expected a positive number in the range of float32"),
        ({"stage1_eps": 1e-46}, "stage1_eps is 1e-46"),
        ({"stage1_eps": "1e-8"}, "stage1_eps is 1e-8"),
        ({"stage1_lazy": 1}, "stage1_lazy is 1; expected True or False"),
        ({"steps": 0}, "steps is 0; expected an integer of at least 1"),
        ({"contribution_examples": 0}, "contribution_examples is 0; expected an integer of at least 1"),
        ({"tuning_steps": 0}, "tuning_steps is 0; expected an integer of at least 1"),
        ({"tuning_steps": 1.5}, "tuning_steps is 1.5; expected an integer of at least 1"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
        ({"method": "guess"}, "method is 'guess'; expected one of auto, exact"),
        ({"correction": "holm"}, "correction is 'holm'"),
        ({"output_role": "loose"}, "output_role is 'loose'"),
        ({"batch_size": 12}, "batch_size is 12; expected a multiple of micro_batch_size, 8"),
        ({"seed": 2**32}, "below 2**32"),
        ({"target": "klingon"}, "klingon"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"bleu_tokenizer": "14a"}, "bleu_tokenizer is '14a'; expected one of 13a, intl"),
        ({"template": "no source"}, "must contain {source}"),
    ],
)
def test_bad_settings_are_refused_by_name(changed, message):
    with pytest.raises(InputError) as error:
        RunSettings(**changed)
    assert message in str(error.value)


def test_tuning_steps_as_many_as_steps_are_the_default():
    assert RunSettings(steps=20, tuning_steps=20) == RunSettings(steps=20) != RunSettings(steps=20, tuning_steps=21)


def test_the_tokenizers_of_bleu_are_those_of_the_evaluation():
    assert get_args(BleuTokenizer) == BLEU_TOKENIZERS


def test_a_folder_from_before_a_setting_existed_resumes_with_the_value_that_made_it_and_refuses_others(tmp_path):
    now = RunSettings().to_dict()
    older = {name: value for name, value in now.items() if name not in BEFORE_THEY_EXISTED}
    with open_run_folder(tmp_path, older, GRID) as folder, folder.write_stage("corpus"):
        pass
    with open_run_folder(tmp_path, {**now, **BEFORE_THEY_EXISTED}, GRID) as folder:
        assert folder.finished("corpus")
    with (
        pytest.raises(InputError, match=r"other settings \(stage1_lazy: False there, True here\)"),
        open_run_folder(tmp_path, now, GRID),
    ):
        pass


def test_differences_name_settings_that_only_one_side_has():
    assert differences({"seed": 0}, {"seed": 0, "alpha": 0.1}) == ["alpha: not set there, 0.1 here"]

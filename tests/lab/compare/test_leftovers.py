"""What a kill outside a stage leaves: the same command tidies up and ends as if nothing had happened."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kslottery_fast.lab.cli import main as cli


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_weights_that_a_kill_after_scoring_left_are_removed_at_the_next_start(copy, finished, finished_arguments):
    weights = [copy / "stages" / f"es.{seed}.full" / "weights.safetensors" for seed in (0, 1)]
    weights[1].write_bytes(b"a whole model")
    assert cli.main([str(copy) if word == str(finished) else word for word in finished_arguments]) == 0
    assert not any(path.exists() for path in weights)


def test_a_kill_before_any_product_is_shown_leaves_none_half_done(copy, arguments):
    command = arguments(copy, "--arms", "partial@4", "--seed", "0")  # all of its stages are finished
    assert cli.main(command) == 0
    wanted = (copy / "summary.json").read_bytes()
    (copy / "summary.json").unlink()  # as where the last stage has just been finished
    names = ["scores.csv", "summary.json"]
    driver = Path(__file__).with_name("kill_products.py")
    result = subprocess.run(
        [sys.executable, driver, ",".join(names), *command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    killed = [line.removeprefix("killed at ") for line in result.stderr.splitlines() if line.startswith("killed at ")]
    assert killed == names
    assert (copy / "summary.json").read_bytes() == wanted
    assert not list(copy.rglob("*.tmp"))

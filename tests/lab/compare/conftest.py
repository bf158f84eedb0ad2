"""A tiny tied model, a corpus of made-up pairs, and one finished comparison that many tests look at."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kslottery_fast.lab.cli import main as cli

WORDS = {"house": "casa", "dog": "perro", "sea": "mar", "red": "rojo", "big": "grande", "file": "archivo"}
ARMS = (
    "partial@0.3 partial@4 partial@0.000001 transfer@4 frequency@4 random@4 l2@4 gradient@4 frozen@4 noise@4 "
    "lora@8 prefix@8 full"
)
GRID = ("--seed", "0,1", "--arms", ARMS.replace(" ", ","))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on two threads, and the kill driver, which has one, gets the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def threads():
    """Every test of this folder runs on one thread."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def compare_world(tmp_path_factory, tiny_llama, tiny_tokenizer) -> Path:
    """A folder with ``model`` and ``pairs.tsv``."""
    folder = tmp_path_factory.mktemp("compare")
    tiny_llama(tied=True, initializer_range=0.1).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    numbers, lines = random.Random(0), set()
    while len(lines) < 60:
        words = numbers.sample(sorted(WORDS), 3)
        lines.add(" ".join(words) + f" {len(lines)}\t" + " ".join(WORDS[word] for word in words) + f" {len(lines)}")
    (folder / "pairs.tsv").write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def arguments(compare_world):
    """``arguments(output, "--more", ...)``: a comparison of seconds, with an alpha at which few steps give tickets."""

    def make(output: Path, *more: str) -> list[str]:
        sizes = {"train": 24, "validation": 5, "test": 6, "steps": 3, "batch-size": 8, "micro-batch-size": 8}
        sizes |= {"max-new-tokens": 6, "n-bootstrap": 20, "effects": 2}
        return [
            *("compare", "--model", str(compare_world / "model"), "--corpus", str(compare_world / "pairs.tsv")),
            *(word for name, size in sizes.items() for word in (f"--{name}", str(size))),
            *("--alpha", "0.3", "--learning-rate", "0.05", "--dtype", "float32", "--output", str(output)),
            *more,
        ]

    return make


@pytest.fixture(scope="session")
def finished(arguments, tmp_path_factory) -> Path:
    """A comparison of two seeds and all kinds of arms, made in this process."""
    output = tmp_path_factory.mktemp("finished") / "comparison"
    with one_thread():
        assert cli.main(arguments(output, *GRID)) == 0
    return output


@pytest.fixture(scope="session")
def grown(arguments, tmp_path_factory) -> SimpleNamespace:
    """A comparison of one seed and language that then grew by an arm and a language.

    ``output``, the grids ``small`` and ``large``, ``summary`` and ``stamps_after`` of the large one, ``summary_before``
    and ``stamps_before`` of the small one.
    """
    output = tmp_path_factory.mktemp("grown") / "comparison"
    small = ["--arms", "partial@4", "--seed", "0", "--effects", "0"]
    large = ["--arms", "partial@4,transfer@4", "--seed", "0", "--target", "es,ca", "--effects", "0"]
    with one_thread():
        assert cli.main(arguments(output, *small)) == 0
        before = json.loads((output / "summary.json").read_text(encoding="utf-8"))
        stamps_before = _stamps(output)
        assert cli.main(arguments(output, *large)) == 0
    after = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return SimpleNamespace(
        output=output,
        small=small,
        large=large,
        summary=after,
        summary_before=before,
        stamps_before=stamps_before,
        stamps_after=_stamps(output),  # now: tests that share the folder let it grow
    )


def _stamps(output: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (output / "stages").glob("*/stage.json")}


@pytest.fixture(scope="session")
def finished_arguments(arguments, finished) -> list[str]:
    """The command line that made it."""
    return arguments(finished, *GRID)


@pytest.fixture(scope="session")
def summary(finished) -> dict:
    """Its ``summary.json``."""
    return json.loads((finished / "summary.json").read_text(encoding="utf-8"))

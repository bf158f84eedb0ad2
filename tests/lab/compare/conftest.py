"""A tiny tied model, a corpus of made-up pairs, and one finished comparison that many tests look at."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from kslottery_fast.lab.cli import main as cli
from kslottery_fast.lab.report.picture import Picture, Svg

WORDS = {"house": "casa", "dog": "perro", "sea": "mar", "red": "rojo", "big": "grande", "file": "archivo"}
ARMS = (
    "partial@0.3 partial@4 partial@0.000001 transfer@4 frequency@4 random@4 l2@4 gradient@4 frozen@4 noise@4 "
    "lora@8 prefix@8 full contribution@4 transfer-contribution@4 transfer-l2@enough"
)
GRID = ("--seed", "0,1", "--arms", ARMS.replace(" ", ","))


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Run on one thread, and draw no figure: tests/lab/report looks at those.

    Tiny matrices are slower on two threads, and the kill driver, which has one, gets the same bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "write_png", lambda self, path: path.write_bytes(b"\x89PNG " + self.name.encode()))
        patch.setattr(Picture, "svg", lambda self: Svg("0 0 10 10", "100%", f'<g id="{self.name}"/>'))
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quick():
    """Run every test of this folder quickly."""
    with quickly():
        yield


@pytest.fixture(scope="session")
def quick_run():
    """``with quick_run():`` as every test here, for fixtures that many tests share."""
    return quickly


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], None]], Path]:
    """``made_once(name, make)``: a folder that ``make`` fills in one of the test processes, for all of them."""
    own = tmp_path_factory.getbasetemp()
    root = own if worker_id == "master" else own.parent

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.done").exists():
                make(root / name)
                (root / f"{name}.done").touch()
        return root / name

    return folder_of


@pytest.fixture(scope="session")
def compare_world(made_once, tiny_llama, tiny_tokenizer) -> Path:
    """A folder with ``model`` and ``pairs.tsv``."""
    return made_once("compare-world", lambda folder: write_world(folder, tiny_llama, tiny_tokenizer))


def write_world(folder: Path, tiny_llama, tiny_tokenizer) -> None:
    tiny_llama(tied=True, initializer_range=0.1).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    numbers, lines = random.Random(0), set()
    while len(lines) < 60:
        words = numbers.sample(sorted(WORDS), 3)
        lines.add(" ".join(words) + f" {len(lines)}\t" + " ".join(WORDS[word] for word in words) + f" {len(lines)}")
    (folder / "pairs.tsv").write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")


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
def finished(arguments, made_once, tmp_path_factory) -> Path:
    """A comparison of two seeds and all kinds of arms: each test process has a copy of its own."""

    def make(folder: Path) -> None:
        with quickly():
            assert cli.main(arguments(folder, *GRID)) == 0

    output = tmp_path_factory.mktemp("finished") / "comparison"
    shutil.copytree(made_once("compare-finished", make), output)
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
    with quickly():
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

"""README and docs tell the truth: their blocks run as printed, their commands, links and files exist."""

from __future__ import annotations

import copy
import re
import shlex
import sys
from pathlib import Path

import documents
import pytest
import torch
from documents import PAGES, ROOT
from fake_hub import fake_hub
from transformers import AutoModelForCausalLM

from kslottery_fast.lab.cli import main
from kslottery_fast.lab.models import loading

QUICK_START = ROOT / "docs" / "quick-start.md"
ON_THE_HUB = ROOT / "docs" / "hub.md"
WITH_TESTS_OF_THEIR_OWN = (QUICK_START, ON_THE_HUB)
PYTHON_PAGES = [page for page in PAGES if documents.blocks(page, "python") and page not in WITH_TESTS_OF_THEIR_OWN]


@pytest.fixture
def small_model(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    """A tiny model in the place of the pinned SmolLM2, in a folder of its own; the blocks themselves are not changed.

    Small weights, so that twenty steps shift rows of 32 numbers far enough for the test.
    """
    folder = tmp_path / "smollm2-135m"
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([" el", " la", " los", " els", " de"])  # single tokens of SmolLM2, which the pages name
    tiny_llama(tied=True, initializer_range=0.02, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source = loading.ModelSource(str(folder), "smollm2-135m", {"kind": "folder", "path": str(folder), "sha256": ""}, {})
    monkeypatch.setattr(loading, "find_source", lambda *_: source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("small_model")
def test_the_page_of_the_hub_goes_from_training_to_peft(tmp_path):
    names: dict[str, object] = {"__name__": "__main__"}
    with fake_hub(tmp_path) as hub:
        exec(compile(documents.program(ON_THE_HUB), str(ON_THE_HUB), "exec"), names)
        assert set(hub.branches) == {"org/spanish-rows", "org/tools", "org/spanish-tickets"}
        card = hub.files("org/spanish-rows")["README.md"].decode()
    assert "| training NLL |" in card
    assert str(names["url"]).startswith(hub.endpoint)
    batch = names["batch"]
    models = [names[name].eval() for name in ("model", "ours", "theirs", "first")]
    with torch.no_grad():
        trained, *others = (model(**batch).logits for model in models)
        untrained = loading.load_model("smollm2-135m", dtype="float32").model(**batch).logits
    for logits in others:
        torch.testing.assert_close(logits, trained)
    assert not torch.allclose(untrained, trained)
    assert names["fresh"].tokenizer.convert_tokens_to_ids(["<|tool|>", "<|result|>"]) == names["tools"]
    assert names["tickets"] == names["found"]


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path):
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(documents.program(page), str(page), "exec"), names)
    if page.name == "README.md":
        shifted = names["tickets"].token_ids.tolist()
        assert shifted
        assert set(names["moved"]) <= set(shifted)
        tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").get_input_embeddings().weight
        base = loading.load_model("smollm2-135m", dtype="float32").model.get_input_embeddings().weight
        assert sorted(shifted) == (tuned != base).any(dim=1).nonzero().flatten().tolist()
        transferred = names["original"].get_input_embeddings().weight
        assert torch.equal(transferred[list(names["moved"])], tuned[list(names["moved"])])


def test_the_quick_start_prints_what_it_says(tmp_path, monkeypatch):
    """Its commands read the files that its programs write, and the other way round."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def command(words):
        assert (words[0], main.main(words[1:])) == ("kslottery", 0)

    assert documents.run(QUICK_START, command) == 4


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([("python", "a = 1\nprint(a)"), ("text", "2")], r"text block of line 6: this was printed instead:\n1\n"),
        (
            [("python", "a = 1"), ("python", "print('so far', a)\na.b")],
            r"(?s)python block of line 5 fails:\nso far 1.*line 6, in <module>.*no attribute 'b'",
        ),
        ([("sh", "no-such-program")], r"(?s)sh block of line 2 fails:\n.*no-such-program is not on PATH"),
        ([("sh", f"{sys.executable} -c 'print(6); exit(3)'")], r"(?s)sh block of line 2 fails:\n6\n.*` ended with 3"),
    ],
)
def test_a_block_that_fails_is_named_with_its_output(tmp_path, monkeypatch, capsys, blocks, message):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("\n".join(f"```{language}\n{text}\n```" for language, text in blocks))
    with pytest.raises(documents.BlockError, match=message):
        documents.run(page, documents.installed_command)
    assert documents.try_page(page) == 1
    assert "error: page.md, " in capsys.readouterr().err
    assert Path.cwd() == tmp_path


def test_a_page_that_runs_as_printed_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    shown = f"""{sys.executable} -c 'print(open("a").read())'"""
    page.write_text(f"```python\nopen('a', 'w').write('x')\n```\n```sh\n{shown}\n```\n```text\nx\n```\n")
    assert documents.try_page(page) == 0
    assert capsys.readouterr().out == "page.md runs, and prints what it says: 1 output compared\n"
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]


def test_readme_and_training_have_blocks():
    assert {"README.md", "training.md"} <= {page.name for page in PYTHON_PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_a_page_names_exists(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_of_a_page_leads_somewhere(page):
    for link, anchor in set(re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", page.read_text(encoding="utf-8"))):
        if link.startswith("https://"):
            continue
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor[1:] in anchors, f"{link}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist_and_take_their_arguments(page):
    for block in documents.blocks(page, "sh"):
        for line in block.text.replace("\\\n", "").splitlines():
            words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
            check_command(words, line)


def check_command(words: list[str], line: str) -> None:
    """Fail where a shell line of a page is no command of this project."""
    match words:
        case []:
            return
        case ["kslottery", *arguments]:
            main.parser().parse_args(arguments)  # ends the program where an argument is unknown
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
        case [".venv/bin/python", "-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), line
        case [".venv/bin/python", script, *_]:
            assert (ROOT / script).exists(), line
        case ["pip", "install", target]:
            extra = re.fullmatch(r"\.\[(\w+)\]", target)
            assert extra, line
            assert re.search(rf"^{extra[1]} = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        case _:
            pytest.fail(f"what is this? {line}")


def test_the_map_names_every_file_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| floor |") : text.index("The modules `stats`")]
    named = set(re.findall(r"`(\w+)`", table))
    package = ROOT / "kslottery_fast"
    described = [package / "lab" / "data", package / "lab" / "models", package]  # in words, or below the table
    files = [file for file in package.rglob("*.py") if not file.stem.startswith("__") and file.parent not in described]
    assert [str(file.relative_to(package)) for file in files if file.stem not in named | {"peft"}] == []

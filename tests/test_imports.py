"""What importing the package costs and needs: little, and nothing of the extra `lab`."""

from __future__ import annotations

import ast
import inspect
import pydoc
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers.utils import is_in_notebook

import kslottery_fast
from kslottery_fast.base import extras
from kslottery_fast.base.errors import InputError
from kslottery_fast.evaluation import evaluate, scores

SOURCE = Path(kslottery_fast.__file__)
# Each takes a tenth of a second or more, or is not there without the extra.
SLOW = ("scipy.special", "scipy.stats", "torch._dynamo", "torch.distributed.tensor")
HEAVY = (*extras.LAB, *SLOW, "accelerate", "huggingface_hub", "peft", "tokenizers", "transformers")


def run_python(code: str) -> str:
    """What the code prints, run in a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ON_TRANSFORMERS = ["TicketTrainer", "TicketSeq2SeqTrainer", "attach_checkpoint", "checkpoint_to_adapter"]
"""Public names whose file is about the Trainer of transformers."""


def test_the_package_imports_nothing_until_it_is_asked_and_nothing_heavy_for_any_public_name():
    code = f"""
        import sys, kslottery_fast
        print(sorted({{"numpy", "safetensors", "scipy", "torch"}} & set(sys.modules)))
        import torch
        torch_alone = set(sys.modules)
        for name in set(kslottery_fast.__all__) - set({ON_TRANSFORMERS!r}):
            getattr(kslottery_fast, name)
        print(sorted(set({HEAVY!r}) & (set(sys.modules) - torch_alone)))
    """
    assert run_python(code) == "[]\n[]"


def test_tickets_are_selected_and_attached_without_what_is_slow_to_import():
    code = f"""
        import sys, torch, kslottery_fast
        before = torch.zeros(8, 100)
        after = before.clone()
        after[3] += 1
        assert kslottery_fast.ks_select(before, after, alpha=0.05).token_ids.tolist() == [3]
        model = torch.nn.Module()
        model.embedding = torch.nn.Embedding(8, 4)
        model.get_input_embeddings = lambda: model.embedding
        kslottery_fast.attach_rows(model, [3])
        model.embedding(torch.tensor([3, 4])).sum().backward()
        print(sorted(set({(*extras.LAB, "scipy.stats", "torch.distributed.tensor")!r}) & set(sys.modules)))
    """
    assert run_python(code) == "[]"


@pytest.mark.skipif("marimo" not in inspect.getsource(is_in_notebook), reason="this transformers does not know marimo")
@pytest.mark.parametrize(
    "use",
    [
        "import kslottery_fast.integrations.monitor",
        "kslottery_fast.TicketTrainer",
        "kslottery_fast.TicketSeq2SeqTrainer",
    ],
)
def test_a_trainer_beside_marimo_without_ipython_says_what_to_install(use):
    """As in a notebook. transformers then imports IPython, and fails with its own words."""
    code = f"""
        import sys, types
        sys.modules["marimo"] = types.ModuleType("marimo")
        sys.modules["IPython"] = None  # to import it is an ImportError
        import kslottery_fast
        try:
            {use}
        except kslottery_fast.InputError as error:
            print(error)
    """
    assert run_python(code) == (
        "the Trainer of transformers, which TicketTrainer is, needs IPython where marimo is imported, to show its "
        "progress; pip install ipython"
    )


def test_another_missing_module_of_the_trainer_keeps_its_own_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.trainer", None)
    with pytest.raises(ModuleNotFoundError, match=r"transformers\.trainer"):
        extras.require_trainer()


def test_without_the_extra_every_public_name_is_there():
    code = f"""
        import sys
        for name in {extras.LAB!r}:
            sys.modules[name] = None  # to import it is an ImportError
        import kslottery_fast
        print(all(callable(getattr(kslottery_fast, name)) for name in kslottery_fast.__all__))
    """
    assert run_python(code) == "True"


def test_scores_without_sacrebleu_say_what_to_install_before_the_model_runs(monkeypatch, tiny_tokenizer):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"needs sacrebleu; pip install 'kslottery-fast\[lab\]'"):
        evaluate.evaluate(torch.nn.Identity(), tiny_tokenizer, [evaluate.Example("a", "b")])
    with pytest.raises(InputError, match="needs sacrebleu"):
        scores.chrf_metric()


@pytest.mark.skipif(not (SOURCE.parents[1] / "pyproject.toml").exists(), reason="not run from a source tree")
def test_the_extra_is_what_pyproject_says_and_no_dependency_of_the_library():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements):
        return {requirement.split(">=")[0].split("==")[0] for requirement in requirements}

    assert names(project["optional-dependencies"]["lab"]) == set(extras.LAB)
    assert names(project["dependencies"]) == {
        "accelerate",
        "huggingface_hub",
        "numpy",
        "regex",
        "safetensors",
        "scipy",
        "torch",
        "transformers",
        "typing_extensions",
    }
    assert "kslottery-fast[lab]" in project["optional-dependencies"]["dev"]


def test_public_names_stand_in_all_in_the_table_of_homes_and_in_what_type_checkers_read():
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block, names = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == kslottery_fast._HOMES
    assert list(kslottery_fast._HOMES) == kslottery_fast.__all__
    # Seen by a type checker, a __getattr__ would make every misspelt name exist.
    assert ast.unparse(names.test) == "not TYPE_CHECKING"
    assert [node.name for node in names.body] == ["__getattr__"]


@pytest.mark.parametrize("name", kslottery_fast.__all__)
def test_a_public_name_comes_from_the_file_that_defines_it(name):
    value = getattr(kslottery_fast, name)
    assert value.__module__ == f"kslottery_fast.{kslottery_fast._HOMES[name]}"
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_dir_and_help_show_the_public_names_alone():
    assert dir(kslottery_fast) == sorted([*kslottery_fast.__all__, "__version__"])
    text = pydoc.plain(pydoc.render_doc(kslottery_fast))
    assert all(name in text for name in kslottery_fast.__all__)
    assert "TYPE_CHECKING" not in text


def test_rooms_are_reached_as_attributes_and_other_names_are_an_error():
    code = """
        import kslottery_fast
        print(kslottery_fast.rows.attach.__name__, kslottery_fast.stats.ks_2samp is kslottery_fast.ks_2samp)
        try:
            kslottery_fast.no_such_name
        except AttributeError as error:
            print(error)
    """
    expected = "kslottery_fast.rows.attach True\nmodule 'kslottery_fast' has no attribute 'no_such_name'"
    assert run_python(code) == expected

"""Every public function refuses a wrong argument by name, with InputError or TypeError."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file

import kslottery_fast
from kslottery_fast import InputError, Tickets, attach_rows
from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.integrations.lora_rows import save_lora_and_rows
from kslottery_fast.integrations.trainer_checkpoint import save_checkpoint
from kslottery_fast.tickets.evidence import Evidence

KINDS = ("None", "str", "int", "float", "strings", "model", "tokenizer", "empty")
WORDS = {"None", "str"}
NUMBERS = {"int", "float"}


@dataclass(frozen=True)
class Door:
    """A function, arguments that it takes, and which of the wrong values are right for some parameter."""

    name: str
    arguments: Callable[[Any], dict[str, Any]]
    legal: dict[str, set[str]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()  # parameters whose values the function hands on as they are

    def __str__(self) -> str:
        return self.name


def function_of(name: str) -> Callable[..., Any]:
    home, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"kslottery_fast.{home}") if home else kslottery_fast, attribute)


@dataclass
class World:
    """What right arguments are made of."""

    model: Any
    attached: Any
    tokenizer: Any
    before: torch.Tensor
    after: torch.Tensor
    examples: list[Example]
    batches: list[dict[str, torch.Tensor]]
    tickets: Tickets
    folder: Any
    checkpoints: tuple[Any, Any]
    adapter: Any
    lora: Any
    both: Any
    trained: Any


@pytest.fixture(scope="module")
def world(tiny_llama, tiny_tokenizer, tmp_path_factory):
    model = tiny_llama(tied=True)
    before = model.get_input_embeddings().weight.detach().clone()
    after = before.clone()
    after[[3, 5]] += 3.0
    examples = [Example("English: red\nSpanish:", " rojo")]
    features = [encode(tiny_tokenizer, example) for example in examples]
    attached = attach_rows(tiny_llama(tied=True), [3, 5])
    folder = tmp_path_factory.mktemp("doors")
    for name, table in (("before", before), ("after", after)):
        save_file({"model.embed_tokens.weight": table}, folder / f"{name}.safetensors")
    kslottery_fast.save_adapter(attached, folder / "saved_adapter")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    lora = attach_rows(peft.get_peft_model(tiny_llama(tied=True), config), [3, 5], freeze=False)
    save_lora_and_rows(lora, folder / "saved_both")
    save_checkpoint(attached, folder / "trained")
    return World(
        model=model,
        attached=attached,
        tokenizer=tiny_tokenizer,
        before=before,
        after=after,
        examples=examples,
        batches=[collate(features, 2)],
        tickets=kslottery_fast.ks_select(before, after),
        folder=folder,
        checkpoints=(folder / "before.safetensors", folder / "after.safetensors"),
        adapter=folder / "saved_adapter",
        lora=lora,
        both=folder / "saved_both",
        trained=folder / "trained",
    )


def state_of(world: World) -> dict[str, torch.Tensor]:
    states = {"model": world.model, "attached": world.attached}
    tensors = {f"{name}.{key}": value for name, each in states.items() for key, value in each.state_dict().items()}
    trains = {
        f"{name}.{key} trains": torch.tensor(value.requires_grad)
        for name, each in states.items()
        for key, value in each.named_parameters()
    }
    return copy.deepcopy({key: value for key, value in {**tensors, **trains}.items() if torch.is_tensor(value)})


OPTIONAL = {"None"}
TOKENIZER = {"tokenizer": {"None", "tokenizer"}}
SELECTION = {"alpha": {"float"}, "correction": OPTIONAL, "top_k": {"None", "int"}, **TOKENIZER}
HEAD_ROWS = {"output_ids": OPTIONAL, "train_padding": OPTIONAL}
MODEL = {"model": {"model"}}
NAME = {"name": {"str"}}
BOOTSTRAP = {"n_bootstrap": {"int"}, "seed": {"int"}, "progress": OPTIONAL, "confidence": {"float"}}
SIZES = {"max_new_tokens": {"int"}, "batch_size": {"int"}}
PATH = {"path": {"str"}}
TABLES = {"emb_before": {"model"}, "emb_after": {"model"}, "before": {"model"}, "after": {"model"}}
ROWS = {"model": {"model"}}
SCORED = MODEL | BOOTSTRAP | SIZES | {"tokenizer": {"tokenizer"}}


def row_update(_world: World) -> dict[str, Any]:
    numbers = {name: torch.zeros(2, 4) for name in ("grad", "exp_avg", "exp_avg_sq")}
    settings = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    return {"table": torch.zeros(5, 4), "rows": torch.tensor([1, 2]), **numbers, **settings}


def some_evidence() -> Evidence:
    numbers = torch.ones(2, dtype=torch.float64)
    return Evidence(torch.tensor([3, 5]), torch.tensor([1, 2]), numbers, numbers, torch.tensor([4, 4]), 10, 4)


def worth() -> dict[str, Any]:
    return {"contributions": SimpleNamespace(token_ids=torch.tensor([5]), contribution=torch.tensor([0.25]))}


RATES = {name: {"int", "float"} for name in ("lr", "beta1", "beta2", "eps", "weight_decay")}

DOORS = [
    Door("active_token_ids", lambda w: {"dataset": [{"input_ids": [1, 2]}]}, {"keys": {"strings"}}),
    Door("attach_checkpoint", lambda w: {"model": w.model, "checkpoint": w.trained}, MODEL),
    Door(
        "add_tokens",
        lambda w: {"model": w.model, "tokenizer": w.tokenizer, "tokens": ["<new>"]},
        MODEL
        | {"tokenizer": {"tokenizer"}, "tokens": {"str", "strings"}, "init": {"int"}, "output_init": OPTIONAL}
        | {"noise": NUMBERS, "seed": {"int"}, "pad_to_multiple_of": {"None", "int"}},
    ),
    Door("add_rows", lambda w: {"model": w.attached, "name": "new", "token_ids": [7]}, NAME | TOKENIZER | HEAD_ROWS),
    Door("attach_rows", lambda w: {"model": w.model, "token_ids": [3]}, ROWS | NAME | TOKENIZER | HEAD_ROWS),
    Door(
        "certify",
        lambda w: {"model": w.model, "batches": w.batches, "alphas": [0.05]},
        MODEL | BOOTSTRAP | {"transfer_model": {"None", "model"}},
    ),
    Door(
        "checkpoint_to_adapter",
        lambda w: {"model": w.model, "checkpoint": w.trained, "path": w.folder / "made_adapter"},
        MODEL | PATH | TOKENIZER | {"base_model_name_or_path": {"None", "str"}},
    ),
    Door("detach_rows", lambda w: {"model": w.attached}),
    Door("embedding_table", lambda w: {"model": w.model}, MODEL),
    Door("evaluate", lambda w: {"model": w.model, "tokenizer": w.tokenizer, "examples": w.examples}, SCORED),
    Door("get_output_rows", lambda w: {"model": w.attached}),
    Door("get_rows", lambda w: {"model": w.attached}),
    Door("has_rows", lambda w: {"model": w.attached}, MODEL),
    Door("is_tied", lambda w: {"model": w.model}, MODEL),
    Door(
        "ks_2samp",
        lambda w: {"data1": [1.0, 2.0], "data2": [2.0, 3.0]},
        # "gpt2" is "greater", as in scipy. A number is a sample of one, and an empty sample gives NaN.
        {name: NUMBERS | {"empty"} for name in ("data1", "data2")}
        | {"axis": {"None", "int"}, "alternative": {"str"}, "atol": NUMBERS},
    ),
    Door("ks_select", lambda w: {"emb_before": w.before, "emb_after": w.after}, SELECTION | TABLES),
    Door(
        "ks_select_checkpoints",
        lambda w: {"before": w.checkpoints[0], "after": w.checkpoints[1]},
        SELECTION | {"tensor": {"str"}, "block_bytes": {"int"}, "progress": OPTIONAL},
    ),
    Door(
        "ks_select_rows",
        lambda w: {"model": w.attached, "alpha": 0.5, "top_k": 1},
        SELECTION | {"alpha": {"None", "float"}},
    ),
    Door("ks_statistics", lambda w: {"before": w.before, "after": w.after}, TABLES),
    Door(
        "load_adapter",
        lambda w: {"model": w.model, "path": w.adapter},
        ROWS | NAME | TOKENIZER | {"revision": OPTIONAL, "train_padding": OPTIONAL},
    ),
    Door("merge_rows", lambda w: {"model": w.attached}),
    Door("mixed_rows", lambda w: {"model": w.attached, "names": ["default"]}, {"copies": {"int"}}),
    Door("remove_rows", lambda w: {"model": w.attached, "name": "default"}),
    Door("row_adamw_", row_update, RATES | {"rows": OPTIONAL, "step": {"int"}, "master": OPTIONAL}),
    Door(
        "row_contributions",
        lambda w: {"model": w.model, "before": w.before, "after": w.after, "batches": w.batches, "points": 1},
        # Its own table is right as before, and equals it as after, where no row has moved.
        TABLES | MODEL | BOOTSTRAP | {"token_ids": OPTIONAL, "points": {"int"}},
    ),
    Door("row_sets", lambda w: {"model": w.attached}, MODEL),
    Door(
        "save_adapter",
        lambda w: {"model": w.attached, "path": w.folder / "adapter"},
        PATH | TOKENIZER | {"base_model_name_or_path": {"None", "str"}, "metrics": OPTIONAL},
    ),
    Door(
        "transfer_rows",
        lambda w: {"source": w.after, "target": w.before.clone(), "token_ids": [3]},
        TOKENIZER | {"source": {"model"}, "target": {"model"}, "output_ids": OPTIONAL},
    ),
    Door("untie_output", lambda w: {"model": w.model}, MODEL),
    Door("use_rows", lambda w: {"model": w.attached, "name": "default"}, {"name": OPTIONAL}),
    Door(
        "evaluation.evaluate.nll",
        lambda w: {"model": w.model, "tokenizer": w.tokenizer, "examples": w.examples},
        SCORED,
    ),
    Door(
        "evaluation.generation.generate",
        lambda w: {"model": w.model, "tokenizer": w.tokenizer, "prompts": ["red"]},
        SCORED | {"prompts": {"strings"}},
    ),
    Door(
        "evaluation.certify.next_token_predictions",
        lambda w: {"model": w.model, "batches": w.batches},
        MODEL | BOOTSTRAP,
    ),
    Door("evaluation.reading.read_tokens", lambda w: {"batches": w.batches}),
    Door(
        "evaluation.logit_bounds.margin_bounds",
        lambda w: {"model": w.model, "batches": w.batches, "token_ids": [3], "rows": torch.zeros(1, 32)},
        MODEL | BOOTSTRAP | {"share": {"None", "float"}},
    ),
    Door(
        "evaluation.intervals.clopper_pearson",
        lambda w: {"successes": 3, "trials": 5},
        BOOTSTRAP | {"successes": {"int"}, "trials": {"int"}},
    ),
    Door("evaluation.intervals.mean_lower_bound", lambda w: {"shares": [0.5, 1.0]}, BOOTSTRAP),
    Door(
        "evaluation.encoding.encode",
        lambda w: {"tokenizer": w.tokenizer, "example": w.examples[0]},
        {"tokenizer": {"tokenizer"}},
    ),
    Door("ks.critical_count", lambda w: {"d": 10, "alpha": 0.05}, {"d": {"int"}, "alpha": {"float"}}),
    Door("ks.pvalues", lambda w: {"h": [1, 2], "d": 10}, {"h": {"int", "empty"}, "d": {"int"}}),
    Door(
        "ks.adjust",
        lambda w: {"pvalue": [0.1, 0.2], "correction": "bh"},
        {"pvalue": {"float", "empty"}, "correction": OPTIONAL},
    ),
    Door("ks.benjamini_hochberg", lambda w: {"pvalue": [0.1, 0.2]}, {"pvalue": {"float", "empty"}}),
    Door(
        "ks.asymptotic_threshold",
        lambda w: {"alpha": 0.05, "n": 5, "m": 5},
        {"alpha": {"float"}, "n": {"int"}, "m": {"int"}},
    ),
    Door(
        "rows.push_adapter",
        lambda w: {"model": w.attached, "repo_id": "org/name"},  # which is not asked: every other argument is refused
        {
            "repo_id": {"str"},
            "private": OPTIONAL,
            **dict.fromkeys(("revision", "commit_message", "base_model_name_or_path"), WORDS),
            **TOKENIZER,
            "metrics": OPTIONAL,
        },
    ),
    Door(
        "rows.save_rows_adapter",
        lambda w: {"token_ids": [3], "rows": torch.zeros(1, 4), "path": w.folder / "saved", "vocab_size": 10},
        {
            "vocab_size": {"int"},
            "pinned": OPTIONAL,
            **TOKENIZER,
            **PATH,
            "task_type": {"None", "str"},
            "base_model_name_or_path": {"None", "str"},
            "head_modules": {"strings", "empty"},
            "input_modules": {"strings"},
        },
    ),
    Door(
        "optim.excursion.adam_excursion",
        lambda w: {"grad": [1e-3], "steps": 5},
        {"grad": NUMBERS | {"empty"}, "steps": {"int"}, "lr": NUMBERS, "eps": NUMBERS, "start_step": {"None", "int"}},
    ),
    Door("optim.excursion.adam_excursion_limit", lambda w: {}, {"steps": {"None", "int"}}),
    Door("rows.gather_rows", lambda w: {"model": w.attached}),
    Door("rows.output_role", lambda w: {"model": w.attached}),
    Door(
        "tickets.scan.scan_checkpoints",
        lambda w: {"before": w.checkpoints[0], "after": w.checkpoints[1]},
        {"alpha": {"float"}, "table": OPTIONAL, "block_bytes": {"int"}, "progress": OPTIONAL},
    ),
    Door(
        "tickets.selectors.select_rows",
        lambda w: {"evidence": some_evidence(), "by": "l2", "k": 1},
        {"k": {"int"}, "contributions": OPTIONAL, "share": {"float"}},
    ),
    Door(
        "tickets.selectors.row_order",
        lambda w: {"evidence": some_evidence(), "by": "contribution"} | worth(),
        {"seed": {"int"}},
    ),
    Door("tickets.selectors.row_values", lambda w: {"evidence": some_evidence(), "by": "contribution"} | worth()),
    Door("tickets.selectors.aligned", lambda w: {"evidence": some_evidence()} | worth()),
    Door(
        "tickets.l2_select_checkpoints",
        lambda w: {"before": w.checkpoints[0], "after": w.checkpoints[1], "k": 1},
        {"k": {"int"}, "tensor": {"str"}, "block_bytes": {"int"}, "progress": OPTIONAL},
    ),
    Door("integrations.pretrained.choose_device", lambda w: {"device": "cpu"}),
    Door(
        "integrations.lora_rows.save_lora_and_rows",
        lambda w: {"model": w.lora, "path": w.folder / "both"},
        PATH | TOKENIZER | {"base_model_name_or_path": {"None", "str"}, "metrics": OPTIONAL},
    ),
    Door(
        "integrations.lora_rows.load_lora_and_rows",
        lambda w: {"model": w.model, "path": w.both},
        ROWS | NAME | TOKENIZER | {"revision": OPTIONAL},
    ),
    Door(
        "integrations.trainer.TicketTrainer",
        lambda w: {"model": w.model, "tickets": [3]},
        ROWS | {"output_ids": OPTIONAL, "train_padding": OPTIONAL},
    ),
]

METHODS = {
    "jaccard": ({"other": None}, {"other": set()}),
    "tokens": ({"tokenizer": None}, {"tokenizer": {"tokenizer"}}),
    "with_texts": ({"tokenizer": None}, {"tokenizer": {"tokenizer"}}),
    "check_tokenizer": ({"tokenizer": None}, {"tokenizer": {"tokenizer"}}),
    "push_to_hub": (
        {"repo_id": "org/name"},
        {
            "repo_id": {"str"},
            "tokenizer": {"None", "tokenizer"},
            "private": {"None"},
            **dict.fromkeys(("revision", "commit_message", "base_model_name_or_path"), WORDS),
        },
    ),
    "save": ({"path": "t.json"}, {"path": {"str"}, "tokenizer": {"None", "tokenizer"}}),
}


def wrong_values(world: World) -> dict[str, Any]:
    values = (None, "gpt2", 3, 0.5, ["a", "b"], world.model, world.tokenizer, [])
    return dict(zip(KINDS, values, strict=True))


def complaint(call: Callable[[], Any], parameter: str) -> str | None:
    """What is wrong with the way in which a call fails, or None."""
    try:
        made = call()
        if isinstance(made, AbstractContextManager):
            with made:
                pass
    except (InputError, TypeError) as error:
        named = re.search(rf"\b{parameter}\b", str(error))
        inside = "object" in str(error) and type(error) is TypeError and "expected" not in str(error)
        return None if named and not inside else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "was taken"


@pytest.mark.parametrize("door", DOORS, ids=str)
def test_a_wrong_argument_is_refused_by_its_name_and_changes_nothing(world, door, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, arguments, before = function_of(door.name), door.arguments(world), state_of(world)
    found = []
    for parameter, spec in inspect.signature(function).parameters.items():
        if parameter in door.skipped or spec.kind in (spec.VAR_KEYWORD, spec.VAR_POSITIONAL):
            continue
        for kind, value in wrong_values(world).items():
            if kind not in door.legal.get(parameter, ()):
                call = partial(function, **{**arguments, parameter: value})
                if (wrong := complaint(call, parameter)) is not None:
                    found.append(f"{door.name}({parameter}={kind}): {wrong}")
    after = state_of(world)
    assert found == []
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_argument_of_a_method_of_tickets_is_refused_by_its_name(world, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, legal = METHODS[method]
    found = []
    for parameter, allowed in legal.items():
        for kind, value in wrong_values(world).items():
            if kind not in allowed:
                call = partial(getattr(world.tickets, method), **{**arguments, parameter: value})
                if (wrong := complaint(call, parameter)) is not None:
                    found.append(f"{method}({parameter}={kind}): {wrong}")
    assert found == []


def test_every_public_function_has_a_door():
    functions = {name for name in kslottery_fast.__all__ if not isinstance(getattr(kslottery_fast, name), type)}
    assert functions <= {door.name for door in DOORS}

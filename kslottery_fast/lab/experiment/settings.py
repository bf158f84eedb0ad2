"""What an experiment is asked to do: settings that bind its folder, and a grid that a later call may extend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data.languages import find_language
from kslottery_fast.lab.data.prompts import DEFAULT_TEMPLATE, check_template

from .specs import ArmSpec, parse_arm

ALPHA_GRID = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8)
"""The alphas of the certificate's curve; the run's own alpha joins them."""

RUN_ARMS = ("untuned", "embed", "transfer@tickets", "partial@tickets", "frequency@tickets", "random@tickets")
"""What ``kslottery run`` compares: the method, and two controls of as many rows as there are tickets."""

COMPARE_ARMS = (
    *("untuned", "embed", "partial@0.05", "partial@18", "partial@64", "transfer@0.05"),
    *("frequency@0.05", "frequency@18", "frequency@64", "random@0.05", "l2@0.05", "gradient@0.05"),
    *("frozen@0.05", "noise@0.05", "lora@0.05", "prefix@0.05"),
)
"""The arms that are affordable on a CPU; ``full`` costs the memory of a whole model's optimizer."""


def option(default: Any, text: str) -> Any:
    """A setting with its help on the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunSettings:
    """One language and one split: every argument of ``kslottery run`` that changes its results."""

    model: str = option("smollm2-135m", "named model, Hugging Face id, folder or .gguf file")
    corpus: str = option("catalogues", "named corpus, .tsv/.csv/.jsonl file of pairs, or folder of .po files")
    source: str = option("en", "source language: a code such as en, or code=Name")
    target: str = option("es", "target language: a code such as es, or code=Name")
    train: int = option(1300, "training pairs")
    validation: int = option(64, "pairs that advice and the effects of single tickets are measured on")
    test: int = option(192, "held-out pairs that every model is scored on")
    template: str = option(DEFAULT_TEMPLATE, "prompt, with {source}, {source_language} and {target_language}")
    alpha: float = option(0.05, "significance level of the KS test")
    method: str = option("auto", "p-values: auto, exact, asymp, or the paper's threshold")
    correction: str | None = option(None, "for testing many rows: bonferroni or bh")
    top_k: int = option(18, "rows to go on with, by largest D, where alpha selects none")
    learning_rate: float = option(1e-2, "of Embed Tuning; it decides how far rows move")
    tuning_learning_rate: float = option(1e-2, "of Partial Tuning and of its controls")
    steps: int = option(150, "updates of every training")
    batch_size: int = option(16, "examples of an update")
    micro_batch_size: int = option(8, "examples that go through the model together, of similar lengths")
    output_role: Literal["auto", "frozen", "tied"] = option(
        "auto", "tied tables: auto or frozen (the head keeps its weights), or tied (the head follows)"
    )
    dtype: str = option("auto", "auto, bfloat16 or float32; trained rows are float32 always")
    seed: int = option(0, "of the split, the batches, the random rows and the bootstrap")
    max_new_tokens: int = option(64, "length of a translation at most")
    eval_batch_size: int = option(32, "sentences in an evaluation batch")
    n_bootstrap: int = option(1000, "resamples of every interval")
    bleu_tokenizer: str = option("13a", "sacrebleu's: 13a, or flores101/flores200 for spBLEU")

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, float) and 0 < self.alpha < 1):
            raise InputError(f"alpha is {self.alpha}; expected a number between 0 and 1, both excluded, such as 0.05")
        for name in ("learning_rate", "tuning_learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; expected a positive number such as 1e-2")
        counts = ("train", "validation", "test", "top_k", "steps", "batch_size", "micro_batch_size")
        for name in (*counts, "max_new_tokens", "eval_batch_size", "n_bootstrap", "seed"):
            value, bound = getattr(self, name), int(name != "seed")
            if not isinstance(value, int) or value < bound:
                raise InputError(f"{name} is {value}; expected an integer of at least {bound}")
        if self.batch_size % self.micro_batch_size:
            raise InputError(
                f"batch_size is {self.batch_size}; expected a multiple of micro_batch_size, {self.micro_batch_size}"
            )
        if self.seed >= 2**32:
            raise InputError(f"seed is {self.seed}; expected an integer below 2**32, which is what numpy takes")
        choices: dict[str, tuple[str | None, ...]] = {
            "method": ("auto", "exact", "asymp", "paper"),
            "correction": (None, "bonferroni", "bh"),
            "output_role": ("auto", "frozen", "tied"),
            "dtype": ("auto", "bfloat16", "float32"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(map(str, allowed))}")
        check_template(self.template)
        find_language(self.source)
        find_language(self.target)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The certificate's grid, the run's own alpha included, ascending."""
        return tuple(sorted({*ALPHA_GRID, self.alpha}))

    @property
    def selection(self) -> dict[str, Any]:
        """What decides which rows are tickets."""
        return {name: getattr(self, name) for name in ("alpha", "method", "correction", "top_k")}

    @property
    def measuring(self) -> dict[str, Any]:
        """How everything is evaluated."""
        return {"batch_size": self.eval_batch_size, "n_bootstrap": self.n_bootstrap, "seed": self.seed}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ExperimentSettings:
    """``base`` binds the folder; the rest is a grid that a later call may extend.

    ``base``: of every language; its ``seed`` is that of the split and of the bootstrap, its ``target`` gives way to
    ``targets``. "untuned" and "embed" are always among the ``arms``, since every other arm is compared with them.
    ``seeds``: of the trainings. ``effects``: tickets whose effect is measured one by one; costs twice as many passes
    over validation. ``margin``: share of Embed Tuning's gain that the recommended set may lose. ``paraphrase``: score
    every arm with a template that was not trained, too.
    """

    base: RunSettings
    arms: tuple[str, ...] = COMPARE_ARMS
    seeds: tuple[int, ...] = (0, 1, 2)
    targets: tuple[str, ...] = ("es",)
    effects: int = 12
    margin: float = 0.1
    paraphrase: bool = True

    def __post_init__(self) -> None:
        for name in ("arms", "seeds", "targets"):
            values = getattr(self, name)
            if not values:
                raise InputError(f"{name} is empty; give at least one")
            if len(set(values)) != len(values):
                raise InputError(f"{name} names one twice: {', '.join(map(str, values))}")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise InputError(f"seeds has {seed}; expected integers from 0 to 2**32 - 1")
        if self.effects < 0:
            raise InputError(f"effects is {self.effects}; expected a number of tickets, 0 for none")
        if not 0 < self.margin < 1:
            raise InputError(f"margin is {self.margin}; expected a share between 0 and 1, such as 0.1")
        codes = [find_language(target).code for target in self.targets]
        if len(set(codes)) != len(codes):
            raise InputError(f"targets names one language twice: {', '.join(self.targets)}")
        self.specs  # noqa: B018 (refuses bad arms now)

    @classmethod
    def of_run(cls, base: RunSettings) -> ExperimentSettings:
        """What ``kslottery run`` does: the default arms, one seed, one language."""
        return cls(base, RUN_ARMS, (base.seed,), (base.target,), effects=0, paraphrase=False)

    @classmethod
    def recorded(cls, header: Mapping[str, Any], folder: Path) -> ExperimentSettings:
        """The settings in the ``run.json`` of a folder, with the grid of the last call."""
        try:
            grid: dict[str, Any] = dict(header["grid"])
            grid |= {name: tuple(grid[name]) for name in ("arms", "seeds", "targets")}
            return cls(RunSettings(**{"target": grid["targets"][0], **header["settings"]}), **grid)
        except (LookupError, TypeError):
            raise InputError(f"{folder}/run.json was not written by this version; make the run anew") from None

    @property
    def specs(self) -> tuple[ArmSpec, ...]:
        """All arms in the order of the tables, without repetition: untuned and Embed Tuning first."""
        asked = [parse_arm(text, self.base.alpha) for text in self.arms]
        return tuple(dict.fromkeys([ArmSpec("untuned"), ArmSpec("embed"), *asked]))

    @property
    def interpreted(self) -> tuple[ArmSpec, ...]:
        """The arms whose effects are looked at position by position: Embed Tuning and the first Partial Tuning."""
        partial = [spec for spec in self.specs if spec.name == "partial"]
        return (ArmSpec("embed"), *partial[:1]) if self.effects else ()

    @property
    def binding(self) -> dict[str, Any]:
        """What must stay the same when a folder is taken up again."""
        return {name: value for name, value in self.base.to_dict().items() if name != "target"}

    @property
    def grid(self) -> dict[str, Any]:
        """What may grow."""
        lists = {"arms": list(map(str, self.specs)), "seeds": list(self.seeds), "targets": list(self.targets)}
        return {**lists, "effects": self.effects, "margin": self.margin, "paraphrase": self.paraphrase}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for every setting that differs.

    >>> differences({"alpha": 0.05, "seed": 0}, {"alpha": 0.01, "seed": 0})
    ['alpha: 0.05 there, 0.01 here']
    """
    sides = [{name: repr(value) for name, value in side.items()} for side in (old, new)]
    pairs = {name: [side.get(name, "not set") for side in sides] for name in {**old, **new}}
    return [f"{name}: {there} there, {here} here" for name, (there, here) in pairs.items() if there != here]

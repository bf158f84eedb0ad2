"""What a run is asked to do: one record, checked before any work, stored in the run's folder, compared on resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data.languages import find_language
from kslottery_fast.lab.data.prompts import DEFAULT_TEMPLATE, check_template

ALPHA_GRID = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8)
"""The alphas of the certificate's curve; the run's own alpha joins them."""


@dataclass(frozen=True)
class RunSettings:
    """Every argument of ``kslottery run`` that changes its results; the defaults are those of ``make demo``.

    ``learning_rate`` is that of Embed Tuning and decides how far rows move, hence how many pass the test;
    ``tuning_learning_rate`` is that of Partial Tuning and of its controls. ``top_k`` is the number of rows to go on
    with where alpha selects none. ``output_role`` is the role of a tied table, see :func:`kslottery_fast.attach_rows`.
    """

    model: str = "smollm2-135m"
    corpus: str = "catalogues"
    source: str = "en"
    target: str = "es"
    train: int = 1300
    validation: int = 64
    test: int = 192
    template: str = DEFAULT_TEMPLATE
    alpha: float = 0.05
    method: str = "auto"
    correction: str | None = None
    top_k: int = 18
    learning_rate: float = 1e-2
    tuning_learning_rate: float = 1e-2
    steps: int = 150
    batch_size: int = 16
    micro_batch_size: int = 8
    output_role: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    max_new_tokens: int = 64
    eval_batch_size: int = 32
    n_bootstrap: int = 1000
    bleu_tokenizer: str = "13a"

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, float) and 0 < self.alpha < 1):
            raise InputError(f"alpha is {self.alpha}; expected a number between 0 and 1, both excluded, such as 0.05")
        for name in ("learning_rate", "tuning_learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; expected a positive number such as 1e-2")
        least = {
            **dict.fromkeys(("train", "validation", "test", "top_k", "steps", "batch_size"), 1),
            "micro_batch_size": 1,
            **dict.fromkeys(("max_new_tokens", "eval_batch_size", "n_bootstrap"), 1),
            "seed": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
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
                names = ", ".join(str(choice) for choice in allowed)
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {names}")
        check_template(self.template)
        find_language(self.source)
        find_language(self.target)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The certificate's grid, the run's own alpha included, ascending."""
        return tuple(sorted({*ALPHA_GRID, self.alpha}))

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        return asdict(self)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for every setting that differs, in the order of :class:`RunSettings`.

    >>> differences({"alpha": 0.05, "seed": 0}, {"alpha": 0.01, "seed": 0})
    ['alpha: 0.05 there, 0.01 here']
    """
    order = [field.name for field in fields(RunSettings)]
    names = sorted({*old, *new}, key=lambda name: (order.index(name) if name in order else len(order), name))
    missing = object()
    return [
        f"{name}: {_show(old, name)} there, {_show(new, name)} here"
        for name in names
        if old.get(name, missing) != new.get(name, missing)
    ]


def _show(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not set"

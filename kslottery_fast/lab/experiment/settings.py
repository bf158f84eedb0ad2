"""What a comparison is asked to do: settings that bind its folder, and a grid that may grow."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data.languages import find_language

from .run_settings import RunSettings

DEFAULT_ARMS = (
    "untuned",
    "embed",
    "partial@0.05",
    "partial@18",
    "partial@64",
    "transfer@0.05",
    "frequency@0.05",
    "frequency@18",
    "frequency@64",
    "random@0.05",
    "l2@0.05",
    "gradient@0.05",
    "frozen@0.05",
    "noise@0.05",
    "lora@0.05",
    "prefix@0.05",
)
"""The arms that are affordable on a CPU; ``full`` costs the memory of a whole model's optimizer."""


@dataclass(frozen=True)
class ArmSpec:
    """One arm as it is asked for: ``name[@size][:lr=rate]``.

    ``size``: a number of rows (int), an alpha (float: as many rows as the KS test selects there), or "active", all rows
    of the corpus; None where an arm has no size. ``learning_rate``: None for the arm's own default.
    """

    name: str
    size: int | float | str | None = None
    learning_rate: float | None = None

    def __str__(self) -> str:
        size = "" if self.size is None else f"@{self.size}"
        rate = "" if self.learning_rate is None else f":lr={_shortest(self.learning_rate)}"
        return f"{self.name}{size}{rate}"


def _shortest(rate: float) -> str:
    """A text that reads as this very number: two rates of one name would share a stage."""
    text = f"{rate:g}"
    return text if float(text) == rate else repr(rate)


def parse_arm(text: str, default_size: float) -> ArmSpec:
    """Read ``name[@size][:lr=rate]``; arms that need a size and have none get ``default_size``, an alpha.

    >>> parse_arm("partial@18", 0.05), str(parse_arm("frequency", 0.05)), str(parse_arm("lora@64:lr=0.001", 0.05))
    (ArmSpec(name='partial', size=18, learning_rate=None), 'frequency@0.05', 'lora@64:lr=0.001')

    Raises
    ------
    InputError : an unknown arm, a size that is no count and no alpha, a size for an arm that has none.
    """
    from .arms import ARMS

    match = re.fullmatch(r"([a-z0-9-]+)(?:@([^@:]+))?(?::lr=([^:]+))?", text.strip())
    if not match or match[1] not in ARMS:
        raise InputError(
            f"unknown arm {text!r}; expected NAME, NAME@SIZE or NAME@SIZE:lr=RATE with NAME one of {', '.join(ARMS)}"
        )
    name, size, rate = match.groups()
    arm = ARMS[name]
    if size is not None and not arm.sized:
        raise InputError(f"arm {text!r}: {name} has no size; write {name!r}")
    if rate is not None and not arm.trains:
        raise InputError(f"arm {text!r}: {name} trains nothing and has no learning rate")
    chosen = _size(text, size) if size is not None else (default_size if arm.sized else None)
    return ArmSpec(name, chosen, None if rate is None else _positive(text, rate))


def _size(text: str, size: str) -> int | float | str:
    if size == "active":
        return size
    if re.fullmatch(r"[0-9]+", size) and int(size) >= 1:
        return int(size)
    try:
        alpha = float(size)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < 1:
        raise InputError(
            f"arm {text!r}: size {size!r} is no number of rows (18), no alpha between 0 and 1 (0.05), and not 'active'"
        )
    return alpha


def _positive(text: str, rate: str) -> float:
    try:
        value = float(rate)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"arm {text!r}: learning rate {rate!r} is no positive number such as 1e-3")
    return value


@dataclass(frozen=True)
class CompareSettings:
    """A comparison: ``base`` binds the folder, the rest is a grid that a later call may extend.

    Parameters
    ----------
    base : as for ``kslottery run``; ``seed`` is that of the split and of the bootstrap, ``target`` is not used.
    arms : specifications; "untuned" and "embed" are always there, since every other arm is compared with them.
    seeds : of the trainings.
    targets : target languages.
    effects : tickets whose effect is measured one by one, and 0 for none; costs twice as many passes over validation.
    margin : share of Embed Tuning's gain that the recommended set may lose.
    """

    base: RunSettings
    arms: tuple[str, ...] = DEFAULT_ARMS
    seeds: tuple[int, ...] = (0, 1, 2)
    targets: tuple[str, ...] = ("es",)
    effects: int = 12
    margin: float = 0.1

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

    @property
    def specs(self) -> tuple[ArmSpec, ...]:
        """All arms in the order of the tables, without repetition: untuned and Embed Tuning first."""
        asked = [parse_arm(text, self.base.alpha) for text in self.arms]
        return tuple(dict.fromkeys([ArmSpec("untuned"), ArmSpec("embed"), *asked]))

    def language(self, target: str) -> RunSettings:
        """The settings of one language."""
        return replace(self.base, target=target)

    @property
    def binding(self) -> dict[str, Any]:
        """What must stay the same when a folder is taken up again."""
        return {name: value for name, value in self.base.to_dict().items() if name != "target"}

    @property
    def grid(self) -> dict[str, Any]:
        """What may grow."""
        return {
            "arms": [str(spec) for spec in self.specs],
            "seeds": list(self.seeds),
            "targets": list(self.targets),
            "effects": self.effects,
            "margin": self.margin,
        }

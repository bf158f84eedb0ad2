"""The arms of an experiment as they are asked for: ``NAME[@SIZE][:lr=RATE]``, and what each name stands for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kslottery_fast.base.errors import InputError


@dataclass(frozen=True)
class ArmFacts:
    """What there is to know of an arm without making it.

    ``label``: what tables call it. ``sized``: whether it takes a size. ``trains``: whether it trains at all and may
    have a learning rate. ``seeded``: whether it differs between training seeds.
    """

    label: str
    sized: bool = True
    trains: bool = True
    seeded: bool = True


FACTS = {
    "untuned": ArmFacts("Untuned", sized=False, trains=False, seeded=False),
    "embed": ArmFacts("Embed Tuning", sized=False),
    "full": ArmFacts("Full Tuning", sized=False),
    "partial": ArmFacts("Partial Tuning (KS)"),
    "transfer": ArmFacts("Partial Transfer (KS)", trains=False),
    "frequency": ArmFacts("Frequency Tuning"),
    "transfer-frequency": ArmFacts("Frequency Transfer", trains=False),
    "random": ArmFacts("Random rows"),
    "transfer-random": ArmFacts("Random Transfer", trains=False),
    "l2": ArmFacts("Rows by L2 shift"),
    "gradient": ArmFacts("Rows by gradient"),
    "frozen": ArmFacts("Tickets frozen"),
    "frozen-frequency": ArmFacts("Frequent rows frozen"),
    "noise": ArmFacts("Norm-matched noise", trains=False),
    "lora": ArmFacts("LoRA"),
    "prefix": ArmFacts("Prefix Tuning"),
}
"""Every arm by the name that ``--arms`` takes; ``arms.ARMS`` makes them."""


@dataclass(frozen=True)
class ArmSpec:
    """One arm as it is asked for.

    ``size``: a number of rows (int), an alpha (float: as many rows as the KS test selects there), "tickets" (those that
    the run's alpha selects, or its top_k rows of largest D where alpha selects none), or "active", all rows of the
    corpus; None where an arm has no size. ``learning_rate``: None for the arm's own default.
    """

    name: str
    size: int | float | str | None = None
    learning_rate: float | None = None

    def __str__(self) -> str:
        size = "" if self.size is None else f"@{self.size}"
        return f"{self.name}{size}{self._rate}"

    @property
    def facts(self) -> ArmFacts:
        return FACTS[self.name]

    @property
    def title(self) -> str:
        """Label and size, as messages show them.

        >>> ArmSpec("frequency", 18).title, ArmSpec("frequency", "tickets").title
        ('Frequency Tuning @18', 'Frequency Tuning')
        """
        if self.size == "tickets":  # of a plain run, where there is nothing to tell it apart from
            return self.facts.label.removesuffix(" (KS)") + self._rate
        size = "" if self.size is None else f" @{self.size}"
        return f"{self.facts.label}{size}{self._rate}"

    @property
    def _rate(self) -> str:
        if self.learning_rate is None:
            return ""
        short = f"{self.learning_rate:g}"  # but it must read as this very number: two of one name would share a stage
        return f":lr={short if float(short) == self.learning_rate else repr(self.learning_rate)}"


def parse_arm(text: str, default_size: float) -> ArmSpec:
    """Read ``name[@size][:lr=rate]``; arms that need a size and have none get ``default_size``, an alpha.

    >>> parse_arm("partial@18", 0.05), str(parse_arm("frequency", 0.05)), str(parse_arm("lora@64:lr=0.001", 0.05))
    (ArmSpec(name='partial', size=18, learning_rate=None), 'frequency@0.05', 'lora@64:lr=0.001')
    """
    match = re.fullmatch(r"([a-z0-9-]+)(?:@([^@:]+))?(?::lr=([^:]+))?", text.strip())
    if not match or match[1] not in FACTS:
        raise InputError(
            f"unknown arm {text!r}; expected NAME, NAME@SIZE or NAME@SIZE:lr=RATE with NAME one of {', '.join(FACTS)}"
        )
    name, size, rate = match.groups()
    facts = FACTS[name]
    if size is not None and not facts.sized:
        raise InputError(f"arm {text!r}: {name} has no size; write {name!r}")
    if rate is not None and not facts.trains:
        raise InputError(f"arm {text!r}: {name} trains nothing and has no learning rate")
    chosen = _size(text, size) if size is not None else (default_size if facts.sized else None)
    if rate is not None and not 0 < _number(rate) < math.inf:
        raise InputError(f"arm {text!r}: learning rate {rate!r} is no positive number such as 1e-3")
    return ArmSpec(name, chosen, None if rate is None else _number(rate))


def _size(text: str, size: str) -> int | float | str:
    if size in ("active", "tickets"):
        return size
    if re.fullmatch(r"[0-9]+", size) and int(size) >= 1:
        return int(size)
    if not 0 < _number(size) < 1:
        raise InputError(
            f"arm {text!r}: size {size!r} is no number of rows (18), no alpha between 0 and 1 (0.05), and neither "
            "'tickets' nor 'active'"
        )
    return _number(size)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

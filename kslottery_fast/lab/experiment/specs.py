"""How the arms of an experiment are written, ``NAME[@SIZE][:lr=RATE]``, and the facts about each name."""

import difflib
import math
import re
from dataclasses import dataclass

from kslottery_fast.base.errors import InputError


@dataclass(frozen=True)
class ArmFacts:
    """The facts about an arm that are known before it is made.

    Parameters
    ----------
    label : str
        Its name in tables.
    sized : bool
        Whether it takes a size.
    trains : bool
        Whether it trains anything, and so may have a learning rate.
    seeded : bool
        Whether it differs between training seeds.
    stage1 : bool
        Whether it trains with ``stage1_beta2`` and ``stage1_eps``, as Embed Tuning does.
    selector : str or None
        How the rows are chosen that it trains or copies, a key of ``SELECTORS`` in ``tickets/evidence.py``. None if it
        changes something else than the chosen rows, or changes them in another way.
    """

    label: str
    sized: bool = True
    trains: bool = True
    seeded: bool = True
    stage1: bool = False
    selector: str | None = None


FACTS = {
    "untuned": ArmFacts("Untuned", sized=False, trains=False, seeded=False),
    "embed": ArmFacts("Embed Tuning", sized=False, stage1=True),
    "full": ArmFacts("Full Tuning", sized=False),
    "partial": ArmFacts("Partial Tuning (KS)", selector="ks"),
    "transfer": ArmFacts("Partial Transfer (KS)", trains=False, selector="ks"),
    "frequency": ArmFacts("Frequency Tuning", selector="frequency"),
    "transfer-frequency": ArmFacts("Frequency Transfer", trains=False, selector="frequency"),
    "random": ArmFacts("Random rows", selector="random"),
    "transfer-random": ArmFacts("Random Transfer", trains=False, selector="random"),
    "l2": ArmFacts("Rows by L2 shift", selector="l2"),
    "gradient": ArmFacts("Rows by gradient", selector="gradient"),
    "frozen": ArmFacts("Tickets frozen", stage1=True),
    "frozen-frequency": ArmFacts("Frequent rows frozen", stage1=True),
    "noise": ArmFacts("Norm-matched noise", trains=False),
    "lora": ArmFacts("LoRA"),
    "prefix": ArmFacts("Prefix Tuning"),
}
"""Every arm by the name that ``--arms`` takes. ``arms.ARMS`` makes them."""


@dataclass(frozen=True)
class ArmSpec:
    """One arm, as it is written.

    Parameters
    ----------
    name : str
        A key of ``FACTS``.
    size : int, float, str or None
        A number of rows (int), or an alpha (float), which stands for as many rows as the KS test selects at it.
        "tickets" stands for the rows that the alpha of the run selects, or its ``top_k`` rows of largest D if it
        selects none. "active" stands for all rows of the active vocabulary. None if the arm takes no size.
    learning_rate : float or None
        None stands for the arm's own default.
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
        """Label and size, for messages.

        Examples
        --------
        >>> ArmSpec("frequency", 18).title, ArmSpec("frequency", "tickets").title
        ('Frequency Tuning @18', 'Frequency Tuning')
        """
        if self.size == "tickets":  # a plain run has only one arm of this name
            return self.facts.label.removesuffix(" (KS)") + self._rate
        size = "" if self.size is None else f" @{self.size}"
        return f"{self.facts.label}{size}{self._rate}"

    @property
    def _rate(self) -> str:
        if self.learning_rate is None:
            return ""
        short = f"{self.learning_rate:g}"  # only if it is exact: two rates with one name would share a stage
        return f":lr={short if float(short) == self.learning_rate else repr(self.learning_rate)}"


def parse_arm(text: str, default_size: float) -> ArmSpec:
    """Read ``NAME[@SIZE][:lr=RATE]``.

    Parameters
    ----------
    text : str
        What was written.
    default_size : float
        The alpha that stands for the size of an arm that needs one and has none.

    Raises
    ------
    InputError
        An unknown name, a size or learning rate that is not a number, or one that the arm does not take.

    Examples
    --------
    >>> parse_arm("partial@18", 0.05), str(parse_arm("frequency", 0.05)), str(parse_arm("lora@64:lr=0.001", 0.05))
    (ArmSpec(name='partial', size=18, learning_rate=None), 'frequency@0.05', 'lora@64:lr=0.001')
    """
    if not isinstance(text, str):
        raise TypeError(f"arm is {text!r}; expected a string such as 'partial@18'")
    match = re.fullmatch(r"([a-z0-9-]+)(?:@([^@:]+))?(?::lr=([^:]+))?", text.strip())
    if not match or match[1] not in FACTS:
        raise InputError(
            f"unknown arm {text!r}; {_hint(text)} NAME, NAME@SIZE or NAME@SIZE:lr=RATE, where NAME is one of "
            f"{', '.join(FACTS)}"
        )
    name, size, rate = match.groups()
    facts = FACTS[name]
    if size is not None and not facts.sized:
        raise InputError(f"arm {text!r}: {name} has no size; write {name!r}")
    if rate is not None and not facts.trains:
        raise InputError(f"arm {text!r}: {name} trains nothing and has no learning rate")
    chosen = _size(text, size) if size is not None else (default_size if facts.sized else None)
    if rate is not None and not 0 < _number(rate) < math.inf:
        raise InputError(f"arm {text!r}: learning rate {rate!r} is not a positive number such as 1e-3")
    return ArmSpec(name, chosen, None if rate is None else _number(rate))


def _size(text: str, size: str) -> int | float | str:
    if size in ("active", "tickets"):
        return size
    if re.fullmatch(r"[0-9]+", size) and int(size) >= 1:
        return int(size)
    if not 0 < _number(size) < 1:
        raise InputError(
            f"arm {text!r}: size {size!r} is not a number of rows (18), an alpha between 0 and 1 (0.05), 'tickets' or "
            "'active'"
        )
    return _number(size)


def _hint(text: str) -> str:
    near = difflib.get_close_matches(text.strip().partition("@")[0], FACTS, n=1)
    return f"did you mean {near[0]}? Write" if near else "write"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

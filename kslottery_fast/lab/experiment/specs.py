"""How the arms of an experiment are written, ``NAME[@SIZE][:OPTION=VALUE]...``, and the facts about each name."""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import Self

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Selector


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
        Whether it trains anything, and so may have learning rates and a number of steps.
    seeded : bool
        Whether it differs between training seeds.
    stage1 : bool
        Whether it trains with ``stage1_beta2``, ``stage1_eps`` and ``stage1_lazy``, as Embed Tuning does.
    draws : bool
        Whether it draws rows or directions at random, and so may have several draws.
    selector : str or None
        How the rows are chosen that it trains or copies, a key of ``CHOSEN`` in :mod:`.arms`. None if it changes
        something else than the chosen rows, or changes them in another way.
    """

    label: str
    sized: bool = True
    trains: bool = True
    seeded: bool = True
    stage1: bool = False
    draws: bool = False
    selector: str | None = None

    @property
    def tunes(self) -> bool:
        """Whether it is Partial Tuning or a control of it, which trains the rows that a selector chooses."""
        return self.trains and self.selector is not None

    @property
    def contributions(self) -> bool:
        """Whether its rows are chosen by their contributions."""
        return self.selector == "contribution"


FACTS = {
    "untuned": ArmFacts("Untuned", sized=False, trains=False, seeded=False),
    "embed": ArmFacts("Embed Tuning", sized=False, stage1=True),
    "full": ArmFacts("Full Tuning", sized=False),
    "partial": ArmFacts("Partial Tuning (KS)", selector="ks"),
    "transfer": ArmFacts("Partial Transfer (KS)", trains=False, selector="ks"),
    "frequency": ArmFacts("Frequency Tuning", selector="frequency"),
    "transfer-frequency": ArmFacts("Frequency Transfer", trains=False, selector="frequency"),
    "random": ArmFacts("Random rows", draws=True, selector="random"),
    "transfer-random": ArmFacts("Random Transfer", trains=False, draws=True, selector="random"),
    "l2": ArmFacts("Rows by L2 shift", selector="l2"),
    "gradient": ArmFacts("Rows by gradient", selector="gradient"),
    "contribution": ArmFacts("Rows by contribution", selector="contribution"),
    "transfer-l2": ArmFacts("L2 Transfer", trains=False, selector="l2"),
    "transfer-gradient": ArmFacts("Gradient Transfer", trains=False, selector="gradient"),
    "transfer-contribution": ArmFacts("Contribution Transfer", trains=False, selector="contribution"),
    "frozen": ArmFacts("Tickets frozen", stage1=True),
    "frozen-frequency": ArmFacts("Frequent rows frozen", stage1=True),
    "noise": ArmFacts("Norm-matched noise", trains=False, draws=True),
    "lora": ArmFacts("LoRA"),
    "prefix": ArmFacts("Prefix Tuning"),
}
"""Every arm by the name that ``--arms`` takes. ``arms.ARMS`` makes them."""


def arms_of(selector: Selector) -> tuple[str, str]:
    """The names of the arms that train and that copy the rows of a selector.

    Examples
    --------
    >>> arms_of("ks"), arms_of("l2")
    (('partial', 'transfer'), ('l2', 'transfer-l2'))
    """
    return ("partial", "transfer") if selector == "ks" else (selector, f"transfer-{selector}")


_BETWEEN = "_"
"""Between the rates of a search where the text names a stage: a file name cannot hold the slash that people write."""

OPTIONS = {
    "lr=RATE[/RATE...]": "The learning rate. Of several, the one with the lowest NLL on the validation pairs is kept.",
    "steps=N": "The number of updates, over which the learning rate falls to 0, in place of --steps or --tuning-steps.",
    "draw=N": "Which random draw it is: 0 (the default), 1, 2, ... For arms that draw rows or directions at random.",
}
"""The options of an arm, as ``--list-arms`` explains them."""

_NAMES = tuple(option.partition("=")[0] for option in OPTIONS)


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
        selects none. "active" stands for all rows of the active vocabulary. "enough" stands for the fewest rows that
        account for 95% of the fall of the loss when contribution chooses them. None if the arm takes no size.
    learning_rate : float or None
        None stands for the arm's own default.
    rates : tuple of float
        The learning rates of a search, in ascending order. The one with the lowest NLL on the validation pairs is kept.
        Empty if the arm does not search.
    steps : int or None
        The number of updates. None stands for the ``steps`` of the run, or its ``tuning_steps`` where the arm tunes
        chosen rows.
    draw : int
        Which random draw it is. Every draw depends on the training seed too.
    """

    name: str
    size: int | float | str | None = None
    learning_rate: float | None = None
    rates: tuple[float, ...] = ()
    steps: int | None = None
    draw: int = 0

    def __str__(self) -> str:
        size = "" if self.size is None else f"@{self.size}"
        return f"{self.name}{size}{self.options}"

    @property
    def facts(self) -> ArmFacts:
        return FACTS[self.name]

    @property
    def needs_contributions(self) -> bool:
        """Whether contributions choose its rows or say how many they are."""
        return self.facts.contributions or self.size == "enough"

    @property
    def title(self) -> str:
        """Label and size, for messages.

        Examples
        --------
        >>> ArmSpec("frequency", 18).title, ArmSpec("frequency", "tickets").title
        ('Frequency Tuning @18', 'Frequency Tuning')
        """
        if self.size == "tickets":  # a plain run has only one arm of this name
            return self.facts.label.removesuffix(" (KS)") + shown_rates(self.options)
        size = "" if self.size is None else f" @{self.size}"
        return f"{self.facts.label}{size}{shown_rates(self.options)}"

    @property
    def options(self) -> str:
        """The options as they are written. Empty if the arm has none.

        Examples
        --------
        >>> ArmSpec("random", 18, rates=(0.01, 0.03), steps=300, draw=2).options
        ':lr=0.01_0.03:steps=300:draw=2'
        """
        rates = self.rates or ((self.learning_rate,) if self.learning_rate is not None else ())
        values = {
            "lr": _BETWEEN.join(map(rate_text, rates)),
            "steps": "" if self.steps is None else str(self.steps),
            "draw": str(self.draw) if self.draw else "",
        }
        return "".join(f":{name}={value}" for name, value in values.items() if value)

    @property
    def candidates(self) -> tuple[Self, ...]:
        """The arms among which a search chooses, one for each learning rate. Empty if the arm does not search."""
        return tuple(replace(self, learning_rate=rate, rates=()) for rate in self.rates)


def rate_text(rate: float) -> str:
    """A learning rate in as few characters as name it exactly: rates that share a name would share a stage.

    Examples
    --------
    >>> rate_text(0.001), rate_text(1.0000001e-3)
    ('0.001', '0.0010000001')
    """
    short = f"{rate:g}"
    return short if float(short) == rate else repr(rate)


def shown_rates(text: str) -> str:
    """The text of an arm, or a part of it, with slashes between its rates.

    Examples
    --------
    >>> shown_rates("lora@18:lr=0.001_0.003")
    'lora@18:lr=0.001/0.003'
    """
    return text.replace(_BETWEEN, "/")


def parse_arm(text: str, default_size: float) -> ArmSpec:
    """Read ``NAME[@SIZE][:lr=RATE[/RATE...]][:steps=N][:draw=N]``.

    Parameters
    ----------
    text : str
        What was written. The options may stand in any order.
    default_size : float
        The alpha that stands for the size of an arm that needs one and has none.

    Raises
    ------
    InputError
        An unknown name or option, or a size or option that is not a number, or one that the arm does not take.

    Examples
    --------
    >>> parse_arm("partial@18", 0.05) == ArmSpec("partial", 18), str(parse_arm("frequency", 0.05))
    (True, 'frequency@0.05')
    >>> str(parse_arm("partial@18:steps=300:lr=3e-2/1e-2", 0.05))
    'partial@18:lr=0.01_0.03:steps=300'
    """
    if not isinstance(text, str):
        raise TypeError(f"arm is {text!r}; expected a string such as 'partial@18'")
    whole, *options = text.strip().split(":")
    name, at, size = whole.partition("@")
    if name not in FACTS:
        raise InputError(
            f"unknown arm {text!r}; {_hint(name)} NAME, NAME@SIZE or NAME@SIZE:lr=RATE, where NAME is one of "
            f"{', '.join(FACTS)}"
        )
    facts = FACTS[name]
    if at and not facts.sized:
        raise InputError(f"arm {text!r}: {name} has no size; write {name!r}")
    chosen = _size(text, size) if at else (default_size if facts.sized else None)
    return _with_options(text, ArmSpec(name, chosen), options)


def _with_options(text: str, spec: ArmSpec, options: Sequence[str]) -> ArmSpec:
    values: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f"did you mean {near[0]}? The" if near else "the"
            raise InputError(f"arm {text!r}: unknown option {name!r}; {hint} options are {', '.join(OPTIONS)}")
        if name in values:
            several = "; write several rates as lr=1e-3/3e-3" if name == "lr" else "; give it once"
            raise InputError(f"arm {text!r}: option {name} is given twice{several}")
        _check_takes(text, spec, name)
        values[name] = value
    rates = _rates(text, values["lr"]) if "lr" in values else ()
    return replace(
        spec,
        learning_rate=rates[0] if len(rates) == 1 else None,
        rates=rates if len(rates) > 1 else (),
        steps=_integer(text, "steps", values["steps"], 1) if "steps" in values else None,
        draw=_integer(text, "draw", values["draw"], 0) if "draw" in values else 0,
    )


def _check_takes(text: str, spec: ArmSpec, option: str) -> None:
    if option == "draw" and not spec.facts.draws:
        drawn = ", ".join(name for name, facts in FACTS.items() if facts.draws)
        raise InputError(f"arm {text!r}: {spec.name} draws nothing at random; leave out draw, which is for {drawn}")
    if option != "draw" and not spec.facts.trains:
        what = "learning rate" if option == "lr" else "number of steps"
        raise InputError(f"arm {text!r}: {spec.name} trains nothing and has no {what}; leave out {option}")


def _rates(text: str, written: str) -> tuple[float, ...]:
    rates = []
    for rate in written.replace(_BETWEEN, "/").split("/"):
        if not 0 < _number(rate) < math.inf:
            raise InputError(f"arm {text!r}: learning rate {rate!r} is not a positive number such as 1e-3")
        if _number(rate) in rates:
            raise InputError(f"arm {text!r}: learning rate {rate} is given twice; give each rate once")
        rates.append(_number(rate))
    return tuple(sorted(rates))


def _integer(text: str, option: str, written: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", written) or int(written) < least:
        raise InputError(
            f"arm {text!r}: {option} {written!r} is not an integer of at least {least}, such as {option}=2"
        )
    return int(written)


def _size(text: str, size: str) -> int | float | str:
    if size in ("active", "tickets", "enough"):
        return size
    if re.fullmatch(r"[0-9]+", size) and int(size) >= 1:
        return int(size)
    if not 0 < _number(size) < 1:
        raise InputError(
            f"arm {text!r}: size {size!r} is not a number of rows (18), an alpha between 0 and 1 (0.05), 'tickets', "
            "'enough' or 'active'"
        )
    return _number(size)


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, FACTS, n=1)
    return f"did you mean {near[0]}? Write" if near else "write"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

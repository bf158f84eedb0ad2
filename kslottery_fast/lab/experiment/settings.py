"""The settings of an experiment: those of a run, and the grid of arms, seeds and languages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from typing_extensions import Self

from kslottery_fast.base.arguments import check_choice
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import Selector
from kslottery_fast.lab.data.languages import find_language

from .run_settings import BEFORE_THEY_EXISTED, RunSettings, is_number
from .specs import ArmSpec, arms_of, parse_arm

BEST_SELECTOR: Selector = "contribution"
"""The selector other than KS that ``kslottery run`` shows."""

BEST_SIZES = (18, 64, 200)
"""The numbers of rows that ``kslottery run`` copies by it. Copies cost no training, and say how many are enough."""


def run_arms(select_by: Selector = "ks", rows: int | str = "tickets") -> tuple[str, ...]:
    """The arms of ``kslottery run``: the rows of a selector, copied and trained, and two controls of the same size.

    Beside the KS test stands the best other selector, trained at the same size and copied at several.

    Examples
    --------
    >>> run_arms("l2", 64)
    ('untuned', 'embed', 'transfer-l2@64', 'l2@64', 'frequency@64', 'random@64')
    """
    tuned, copied = arms_of(select_by)
    control = "partial" if select_by == "frequency" else "frequency"
    best, best_copied = arms_of(BEST_SELECTOR)
    copies = [f"{best_copied}@{size}" for size in BEST_SIZES] if select_by == "ks" else []
    others = [best] if select_by == "ks" else []
    trained = [f"{name}@{rows}" for name in (tuned, *others, control, "random")]
    return ("untuned", "embed", f"{copied}@{rows}", *copies, *trained)


RUN_ARMS = run_arms()
"""The default arms of ``kslottery run``."""

COMPARE_ARMS = (
    *("untuned", "embed", "transfer@64", "transfer-contribution@64"),
    *(f"{name}@{size}" for size in (18, 64, 200, 0.05) for name in ("partial", "frequency", "l2", "contribution")),
    *("random@64", "frozen@64", "lora@64", "prefix@64"),
)
"""The default arms of ``kslottery compare``. ``full`` is left out: it needs the memory of a whole model's optimizer."""


@dataclass(frozen=True)
class ExperimentSettings:
    """The settings of an experiment: ``base`` binds its folder, and the rest is a grid that a later call may extend.

    Parameters
    ----------
    base : RunSettings
        The settings of every language. Its ``seed`` is that of the split and of the bootstrap. Its ``target`` is
        replaced by each of ``targets``.
    arms : tuple of str
        What is compared. "untuned" and "embed" are always added, because every other arm is compared with them.
    seeds : tuple of int
        The training seeds.
    targets : tuple of str
        The target languages.
    effects : int
        How many tickets have their effect measured one by one. Each takes two passes over the validation split.
    margin : float
        The share of Embed Tuning's gain that the recommended set of rows may lose.
    paraphrase : bool
        Whether every arm is also scored with a template that was not used in training.
    select_by : {"ks", "l2", "gradient", "frequency", "contribution"}
        The selector whose arms are the method here. The report compares the others with them, and holds its rows. It
        recommends an arm of any selector. The certificate is about the tickets of the KS test in any case.

    Raises
    ------
    InputError
        A value that is not allowed. The message names the setting.

    Examples
    --------
    >>> settings = ExperimentSettings(RunSettings(), arms=("partial@18",), seeds=(0, 1))
    >>> [str(spec) for spec in settings.specs]
    ['untuned', 'embed', 'partial@18']
    """

    base: RunSettings
    arms: tuple[str, ...] = COMPARE_ARMS
    seeds: tuple[int, ...] = (0, 1, 2)
    targets: tuple[str, ...] = ("es",)
    effects: int = 12
    margin: float = 0.1
    paraphrase: bool = True
    select_by: Selector = "ks"

    def __post_init__(self) -> None:
        for name in ("arms", "seeds", "targets"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, (tuple, list)):
                raise TypeError(f"{name} is {values!r}; expected a tuple")
            if not values:
                raise InputError(f"{name} is empty; give at least one")
            if len(set(values)) != len(values):
                raise InputError(f"{name} names one twice: {', '.join(map(str, values))}")
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
                raise InputError(f"seeds has {seed}; expected integers from 0 to 2**32 - 1")
        if isinstance(self.effects, bool) or not isinstance(self.effects, int) or self.effects < 0:
            raise InputError(f"effects is {self.effects}; expected a number of tickets, or 0 for none")
        if not (is_number(self.margin) and 0 < self.margin < 1):
            raise InputError(f"margin is {self.margin}; expected a share between 0 and 1, such as 0.1")
        codes = [find_language(target).code for target in self.targets]
        if len(set(codes)) != len(codes):
            raise InputError(f"targets names one language twice: {', '.join(self.targets)}")
        check_choice(self.select_by, get_args(Selector), "select_by")
        self.specs  # noqa: B018 (refuses bad arms now)

    @classmethod
    def of_run(
        cls, base: RunSettings, seed: int | None = None, *, select_by: Selector = "ks", rows: int | str = "tickets"
    ) -> Self:
        """The settings of ``kslottery run``: the default arms, one training seed and one language.

        Parameters
        ----------
        base : RunSettings
            The settings of the run.
        seed : int, optional
            The training seed, by default ``base.seed``.
        select_by : str
            The selector whose rows are copied and trained. The controls are frequent rows (for "frequency" those of
            largest D) and random rows.
        rows : int or str
            How many, the size of all these arms.
        """
        chosen = base.seed if seed is None else seed
        check_choice(select_by, get_args(Selector), "select_by")
        arms = run_arms(select_by, rows)
        return cls(base, arms, (chosen,), (base.target,), effects=0, paraphrase=False, select_by=select_by)

    @classmethod
    def recorded(cls, header: Mapping[str, Any], folder: Path) -> Self:
        """The settings in the ``run.json`` of a folder, with the grid of the latest call.

        Raises
        ------
        InputError
            The file was written by another version.
        """
        try:
            grid: dict[str, Any] = dict(header["grid"])
            grid |= {name: tuple(grid[name]) for name in ("arms", "seeds", "targets")}
            settings = {"target": grid["targets"][0], **BEFORE_THEY_EXISTED, **header["settings"]}
            return cls(RunSettings(**settings), **grid)
        except (LookupError, TypeError):
            raise InputError(
                f"{folder}/run.json was written by another version; run the experiment again in a new folder"
            ) from None

    @property
    def specs(self) -> tuple[ArmSpec, ...]:
        """All arms in the order of the tables, each once. Untuned and Embed Tuning come first."""
        asked = [parse_arm(text, self.base.alpha) for text in self.arms]
        return tuple(dict.fromkeys([ArmSpec("untuned"), ArmSpec("embed"), *asked]))

    @property
    def needs_contributions(self) -> bool:
        """Whether any arm needs the contributions of rows."""
        return any(spec.needs_contributions for spec in self.specs)

    @property
    def interpreted(self) -> tuple[ArmSpec, ...]:
        """The arms whose effects are measured by position: Embed Tuning and the first one that trains chosen rows."""
        return (ArmSpec("embed"), *self.tuned[:1]) if self.effects else ()

    @property
    def tuned(self) -> tuple[ArmSpec, ...]:
        """The arms that train the rows of ``select_by``."""
        return tuple(spec for spec in self.specs if spec.name == arms_of(self.select_by)[0])

    @property
    def binding(self) -> dict[str, Any]:
        """The settings that must be the same when a run resumes in its folder."""
        return {name: value for name, value in self.base.to_dict().items() if name != "target"}

    @property
    def grid(self) -> dict[str, Any]:
        """The settings that may change from call to call."""
        lists = {"arms": list(map(str, self.specs)), "seeds": list(self.seeds), "targets": list(self.targets)}
        others = {"effects": self.effects, "margin": self.margin, "paraphrase": self.paraphrase}
        # Left out for the KS test, so that a report from before there was a choice is still that of its grid.
        return {**lists, **others, **({} if self.select_by == "ks" else {"select_by": self.select_by})}

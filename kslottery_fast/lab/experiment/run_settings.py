"""The settings of one language and one split, which bind the folder of an experiment."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import BleuTokenizer, Correction, Method, SharedRole
from kslottery_fast.lab.data.languages import find_language
from kslottery_fast.lab.data.prompts import DEFAULT_TEMPLATE, check_template

ALPHA_GRID = (0.001, 0.05, 0.1, 0.2, 0.5, 0.8)
"""The alphas of the certificate's curve. The alpha of the run is added to them."""

FORMER_ALPHA_GRID = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8)
"""The grid of folders that were made by version 0.1."""

Dtype = Literal["auto", "bfloat16", "float32"]

BEFORE_THEY_EXISTED = {
    "stage1_beta2": 0.999,
    "stage1_eps": 1e-8,
    "stage1_lazy": False,
    "contribution_examples": None,
    "tuning_steps": None,
}
"""Settings that older folders do not record, and the values with which those folders were made."""

TASK, SELECTION, TRAINING, EVALUATION = "model and data", "selection of tickets", "training", "evaluation"
"""The groups of settings in the help of the command line."""


def option(default: Any, group: str, text: str, *, choices: Any = None, flag: str | None = None) -> Any:
    """A setting, and how the command line shows it.

    Parameters
    ----------
    default : any
        The default value.
    group : str
        The group of options that it belongs to.
    text : str
        Its help.
    choices : Literal type, optional
        The values that are allowed.
    flag : str, optional
        Its name on the command line, by default that of the field.
    """
    metadata = {"group": group, "help": text, "choices": get_args(choices) if choices else None, "flag": flag}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunSettings:
    """The settings of one language and one split: everything that changes the results of ``kslottery run``.

    Raises
    ------
    InputError
        A value that is not allowed. The message names the setting.

    Examples
    --------
    >>> RunSettings(target="ca", steps=20).alpha
    0.05
    """

    model: str = option("smollm2-135m", TASK, "named model, Hugging Face id, model folder or .gguf file")
    corpus: str = option("catalogues", TASK, "named corpus, .tsv, .csv or .jsonl file of pairs, or folder of .po files")
    source: str = option("en", TASK, "source language: a code such as en, or CODE=NAME")
    target: str = option("es", TASK, "target language: a code such as es, or CODE=NAME")
    train: int = option(1300, TASK, "number of training pairs")
    validation: int = option(64, TASK, "number of validation pairs, on which advice and effects of tickets are based")
    test: int = option(192, TASK, "number of held-out pairs, on which every model is scored")
    template: str = option(DEFAULT_TEMPLATE, TASK, "prompt with {source}, {source_language} and {target_language}")
    alpha: float = option(0.05, SELECTION, "significance level of the KS test, between 0 and 1")
    method: Method = option("auto", SELECTION, "how p-values are computed", choices=Method)  # noqa: RUF009
    correction: Correction | None = option(  # noqa: RUF009
        None, SELECTION, "correction for testing many rows (default: none)", choices=Correction
    )
    top_k: int = option(
        18, SELECTION, "number of rows of largest D to take if alpha selects none", flag="fallback-top-k"
    )
    contribution_examples: int | None = option(
        None, SELECTION, "number of training pairs from which contributions of rows are computed (default: all)"
    )
    learning_rate: float = option(1e-2, TRAINING, "learning rate of Embed Tuning, which decides how far rows move")
    tuning_learning_rate: float = option(1e-2, TRAINING, "learning rate of Partial Tuning and of its controls")
    stage1_beta2: float = option(
        0.999, TRAINING, "decay rate of Adam's second moment in Embed Tuning, from 0 to below 1"
    )
    stage1_eps: float = option(
        1e-8, TRAINING, "number that Adam adds to the denominator in Embed Tuning; a larger one holds rare rows back"
    )
    stage1_lazy: bool = option(
        True, TRAINING, "Embed Tuning updates a row only if the batch reads it, so that momentum carries no rare row"
    )
    steps: int = option(150, TRAINING, "updates of each training, where nothing else is said")
    tuning_steps: int | None = option(
        None, TRAINING, "updates of Partial Tuning and of its controls (default: as many as --steps)"
    )
    batch_size: int = option(16, TRAINING, "examples per update")
    micro_batch_size: int = option(8, TRAINING, "examples of similar length that go through the model together")
    output_role: SharedRole = option(  # noqa: RUF009
        "auto",
        TRAINING,
        "the output head of a model with tied embeddings: it stays as it was (auto, frozen) or follows the rows (tied)",
        choices=SharedRole,
    )
    dtype: Dtype = option(  # noqa: RUF009
        "auto", TRAINING, "dtype of the model; trained rows are always float32", choices=Dtype
    )
    seed: int = option(
        0, TASK, "random seed of the split into train, validation and test, and of the bootstrap", flag="split-seed"
    )
    max_new_tokens: int = option(64, EVALUATION, "maximum length of a translation, in tokens")
    eval_batch_size: int = option(64, EVALUATION, "sentences per evaluation batch")
    n_bootstrap: int = option(1000, EVALUATION, "bootstrap resamples per interval")
    bleu_tokenizer: BleuTokenizer = option(  # noqa: RUF009
        "13a", EVALUATION, "tokenizer of sacrebleu; flores101 or flores200 give spBLEU", choices=BleuTokenizer
    )

    def __post_init__(self) -> None:
        for name in ("model", "corpus", "source", "target", "template"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} is {value!r}; expected a string")
        if not (is_number(self.alpha) and 0 < self.alpha < 1):
            raise InputError(f"alpha is {self.alpha}; expected a number between 0 and 1, such as 0.05")
        for name in ("learning_rate", "tuning_learning_rate"):
            value = getattr(self, name)
            if not (is_number(value) and math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; expected a positive number such as 1e-2")
        if not (is_number(self.stage1_beta2) and 0 <= self.stage1_beta2 < 1):
            raise InputError(
                f"stage1_beta2 is {self.stage1_beta2}; expected a number of at least 0 and below 1, such as 0.999"
            )
        # The optimizer computes in float32. An eps that is 0 there would turn a gradient of 0 into 0 / 0.
        if not (is_number(self.stage1_eps) and 2.0**-126 <= self.stage1_eps < 2.0**127):
            raise InputError(
                f"stage1_eps is {self.stage1_eps}; expected a positive number in the range of float32, such as 1e-8"
            )
        if not isinstance(self.stage1_lazy, bool):
            raise InputError(f"stage1_lazy is {self.stage1_lazy!r}; expected True or False")
        counts: tuple[str, ...] = ("train", "validation", "test", "top_k", "steps", "batch_size", "micro_batch_size")
        counts += tuple(name for name in ("contribution_examples", "tuning_steps") if getattr(self, name) is not None)
        for name in (*counts, "max_new_tokens", "eval_batch_size", "n_bootstrap", "seed"):
            value, bound = getattr(self, name), int(name != "seed")
            if isinstance(value, bool) or not isinstance(value, int) or value < bound:
                raise InputError(f"{name} is {value}; expected an integer of at least {bound}")
        if self.tuning_steps == self.steps:  # the default by another name: the folder of one is that of the other
            object.__setattr__(self, "tuning_steps", None)
        if self.batch_size % self.micro_batch_size:
            raise InputError(
                f"batch_size is {self.batch_size}; expected a multiple of micro_batch_size, {self.micro_batch_size}"
            )
        if self.seed >= 2**32:
            raise InputError(f"seed is {self.seed}; expected an integer below 2**32, the limit of numpy")
        choices: dict[str, tuple[str | None, ...]] = {
            "method": get_args(Method),
            "correction": (None, *get_args(Correction)),
            "output_role": get_args(SharedRole),
            "dtype": get_args(Dtype),
            "bleu_tokenizer": get_args(BleuTokenizer),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(map(str, allowed))}")
        check_template(self.template)
        find_language(self.source)
        find_language(self.target)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas of the certificate, in ascending order."""
        return self.alphas_of(ALPHA_GRID)

    def alphas_of(self, grid: tuple[float, ...]) -> tuple[float, ...]:
        """The alphas of the certificate with another grid."""
        return tuple(sorted({*grid, self.alpha}))

    @property
    def selection(self) -> dict[str, Any]:
        """The settings that decide which rows are tickets."""
        return {name: getattr(self, name) for name in ("alpha", "method", "correction", "top_k")}

    @property
    def measuring(self) -> dict[str, Any]:
        """The settings of every evaluation."""
        return {"batch_size": self.eval_batch_size, "n_bootstrap": self.n_bootstrap, "seed": self.seed}

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


def is_number(value: object) -> bool:
    """Tell whether a setting is a number, which a bool is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for every setting that differs.

    A setting of ``new`` that ``old`` lacks because it did not exist yet has its value in ``BEFORE_THEY_EXISTED``.

    Examples
    --------
    >>> differences({"alpha": 0.05, "seed": 0}, {"alpha": 0.01, "seed": 0})
    ['alpha: 0.05 there, 0.01 here']
    """
    old = {**{name: value for name, value in BEFORE_THEY_EXISTED.items() if name in new}, **old}
    sides = [{name: repr(value) for name, value in side.items()} for side in (old, new)]
    pairs = {name: [side.get(name, "not set") for side in sides] for name in {**old, **new}}
    return [f"{name}: {there} there, {here} here" for name, (there, here) in pairs.items() if there != here]

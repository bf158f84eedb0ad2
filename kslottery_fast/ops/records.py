"""The arguments of the two AdamW operators. Schemas, checks and kernels take their lists from here."""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

from torch import Tensor


class RowUpdate(NamedTuple):
    """The arguments of :func:`kslottery_fast.ops.row_adamw_`, which describes them."""

    table: Tensor  # [V, d]
    rows: Tensor | None  # int64 [k]
    grad: Tensor  # [k, d]
    exp_avg: Tensor  # [k, d]
    exp_avg_sq: Tensor  # [k, d]
    step: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    master: Tensor | None = None  # float32 [k, d]
    lazy: bool = False

    @property
    def numbers(self) -> tuple[float, float, float, float, float]:
        """The numbers that the native functions take after the tensors and the step, in this order."""
        return self.lr, self.beta1, self.beta2, self.eps, self.weight_decay


class StepUpdate(NamedTuple):
    """The arguments of :func:`kslottery_fast.ops.row_adamw_step_`. A list has an entry for each table."""

    tables: list[Tensor]
    rows: list[Tensor | None]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    masters: list[Tensor]  # may be empty
    steps: list[Tensor]  # scalars
    lrs: list[Tensor]  # scalars
    control: Tensor  # int32 [3]
    beta1: list[float]
    beta2: list[float]
    eps: list[float]
    weight_decay: list[float]
    whole_grads: list[bool]
    skip_nonfinite: bool = False
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    lazy: list[bool] | None = None

    def part(self, i: int, *, grad: Tensor, step: int, lr: float) -> RowUpdate:
        """The update of one table, with the gradient of its rows and with step and lr as numbers."""
        master = self.masters[i] if self.masters[i].numel() else None
        tensors = self.tables[i], self.rows[i], grad, self.exp_avgs[i], self.exp_avg_sqs[i]
        hyper = self.beta1[i], self.beta2[i], self.eps[i], self.weight_decay[i]
        return RowUpdate(*tensors, step, lr, *hyper, master, self.lazy is not None and self.lazy[i])


_TYPES: dict[Any, str] = {
    Tensor: "Tensor{}",
    Tensor | None: "Tensor{}?",
    list[Tensor]: "Tensor{}[]",
    list[Tensor | None]: "Tensor?{}[]",
    list[float]: "float[]",
    list[bool]: "bool[]",
    list[bool] | None: "bool[]?",
    int: "int",
    float: "float",
    bool: "bool",
}


def schema_of(record: type[RowUpdate] | type[StepUpdate], *, written: tuple[str, ...], first_keyword: str) -> str:
    """Return the schema of an operator that takes the fields of a record, writes into some, and returns nothing.

    >>> schema_of(RowUpdate, written=("table", "master"), first_keyword="step")[:64]
    '(Tensor(a!) table, Tensor? rows, Tensor grad, Tensor exp_avg, Te'
    """
    aliases = {name: f"({letter}!)" for name, letter in zip(written, "abcdefgh", strict=False)}
    types, arguments = get_type_hints(record), []
    for name in record._fields:
        if name == first_keyword:
            arguments.append("*")
        default = f"={record._field_defaults[name]}" if name in record._field_defaults else ""
        arguments.append(f"{_TYPES[types[name]].format(aliases.get(name, ''))} {name}{default}")
    return f"({', '.join(arguments)}) -> ()"

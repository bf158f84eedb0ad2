"""The optimizers that the study of stage 1 compares with AdamW.

They are written to be read. ``RowAdamW`` is what trains in the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from kslottery_fast.lab.experiment.run_settings import RunSettings
from kslottery_fast.lab.experiment.training import Recipe

Name = Literal["adam", "row", "lazy", "sgd"]

OWN: dict[str, tuple[Sequence[float | None], Sequence[float | None], Sequence[float | None]]] = {
    "adam": ((1e-8, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3), (0.999, 0.98, 0.95, 0.9), (None,)),
    "row": ((1e-8, 1e-5), (0.999,), (None,)),
    "lazy": ((1e-8,), (0.999,), (None,)),
    "sgd": ((None,), (None,), (0.1, 0.3, 1.0)),
}
"""The values of eps, beta2 and the learning rate that are tried by default. None is that of the experiment.

At a learning rate of about 0.2, ``sgd`` moves the most frequent rows as far as Adam moves them at 1e-2. The estimate is
from an Embed Tuning by Adam with the default settings (Spanish, 150 updates). Its 18 most frequent rows moved by 0.16
to 0.29 times the sum of the norms of their clipped gradients. With momentum 0.9 and a learning rate that falls
linearly, gradients whose sum is a fifth as long as the sum of their norms move a row by about ``lr`` times that sum.
"""

MOMENTUM = 0.9


class PlainAdam(Optimizer):
    """Adam without weight decay, for matrices of trained rows.

    Parameters
    ----------
    params : iterable of nn.Parameter
        The rows, [k, d].
    lr : float
        Learning rate.
    betas : (float, float)
        Decay rates of the two moments.
    eps : float
        Number added to the denominator.
    second_moment : {"element", "row"}
        "row" keeps one second moment for each row. It is the running mean of the mean of the row's squared gradients,
        as in TorchRec's and FBGEMM's row-wise optimizers for embedding tables. The state is [k, 1].

    Examples
    --------
    The row-wise denominator is the same for all numbers of a row.

    >>> rows = nn.Parameter(torch.zeros(1, 2))
    >>> optimizer = PlainAdam([rows], lr=0.1, second_moment="row")
    >>> rows.grad = torch.tensor([[3.0, 4.0]])
    >>> optimizer.step()
    >>> (rows.detach() / 0.1 * 12.5**0.5).round(decimals=4)
    tensor([[-3., -4.]])
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        second_moment: Literal["element", "row"] = "element",
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "second_moment": second_moment})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, self.state[param], group)

    def _update(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        square = grad.square()
        if group["second_moment"] == "row":
            square = square.mean(dim=1, keepdim=True)
        if not state:
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(grad), exp_avg_sq=torch.zeros_like(square))
        state["step"] += 1
        step = int(state["step"])
        moment = state["exp_avg"].lerp_(grad, 1 - beta1)
        second = state["exp_avg_sq"].lerp_(square, 1 - beta2)
        denominator = (second / (1 - beta2**step)).sqrt() + group["eps"]
        param -= group["lr"] / (1 - beta1**step) * moment / denominator


@dataclass(frozen=True)
class Method:
    """An optimizer of stage 1 and its numbers, without those that it does not have.

    ``adam`` and ``lazy`` are RowAdamW. As ``Recipe.optimizer`` a method makes any other.

    Parameters
    ----------
    optimizer : {"adam", "row", "lazy", "sgd"}
        AdamW, one second moment for each row, lazy updates, or gradient descent with momentum.
    eps, beta2 : float, optional
        For all but ``sgd``.
    learning_rate : float, optional
        By default that of the experiment.
    """

    optimizer: Name = "adam"
    eps: float | None = None
    beta2: float | None = None
    learning_rate: float | None = None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Method:
        """The method of a finished setting."""
        return cls(**{name: result.get(name, default) for name, default in asdict(cls()).items()})

    def __str__(self) -> str:
        """Its part of a file name.

        >>> print(Method("adam", 1e-8, 0.999), Method("row", 1e-8, 0.999), Method("sgd", learning_rate=1.0))
        eps=1e-08.beta2=0.999 row.eps=1e-08.beta2=0.999 sgd.lr=1.0
        """
        numbers = {"eps": self.eps, "beta2": self.beta2, "lr": self.learning_rate}
        parts = [f"{name}={value!r}" for name, value in numbers.items() if value is not None]
        return ".".join(parts if self.optimizer == "adam" else [self.optimizer, *parts])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the experiment that it decides."""
        numbers = {"stage1_eps": self.eps, "stage1_beta2": self.beta2, "learning_rate": self.learning_rate}
        return {name: value for name, value in numbers.items() if value is not None} | {
            "stage1_lazy": self.optimizer == "lazy"
        }

    def __call__(self, params: Iterable[nn.Parameter], recipe: Recipe) -> Optimizer:
        """Make the optimizer."""
        if self.optimizer == "sgd":
            return SGD(params, lr=recipe.learning_rate, momentum=MOMENTUM)
        return PlainAdam(
            params,
            recipe.learning_rate,
            (0.9, recipe.beta2),
            recipe.eps,
            second_moment="row",
        )


def methods(
    optimizers: Sequence[str] = ("adam",),
    eps: Sequence[float] | None = None,
    beta2: Sequence[float] | None = None,
    rates: Sequence[float] | None = None,
) -> list[Method]:
    """All methods to try. Those that differ from the first eps and beta2 in one number alone come first.

    >>> [str(one) for one in methods(["adam"], [1, 2], [3, 4])]
    ['eps=1.beta2=3', 'eps=2.beta2=3', 'eps=1.beta2=4', 'eps=2.beta2=4']
    >>> [str(one) for one in methods(["row", "sgd"], eps=[1e-8], rates=[0.01, 0.02])]
    ['row.eps=1e-08.beta2=0.999', 'row.eps=1e-08.beta2=0.999.lr=0.02', 'sgd.lr=0.01', 'sgd.lr=0.02']
    """
    found: list[Method] = []
    for name in optimizers:
        if name not in OWN:
            raise SystemExit(f"--optimizer {name}: expected some of {', '.join(OWN)}")
        given = (None, None, rates) if name == "sgd" else (eps, beta2, rates)
        first, second, third = (values or own for values, own in zip(given, OWN[name], strict=True))
        if name != "sgd":  # results at the usual learning rate do not name it
            third = [None if rate == RunSettings.learning_rate else rate for rate in third]
        pairs = [(one, second[0]) for one in first] + [(first[0], one) for one in second[1:]]
        pairs += [(one, other) for one in first[1:] for other in second[1:]]
        found += [Method(cast(Name, name), *pair, rate) for rate in third for pair in pairs]
    return found

"""How far Adam carries a row that received one gradient."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kslottery_fast.base.arguments import check_integer, shown
from kslottery_fast.base.errors import InputError

from .checks import check_hyperparameters


def adam_excursion(
    grad: npt.ArrayLike,
    steps: int,
    *,
    lr: float | Sequence[float] | npt.NDArray[np.float64] = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    start_step: int | None = 1,
) -> npt.NDArray[np.float64]:
    r"""Return how far Adam moves a number that receives one gradient and then none.

    All updates go in one direction, against the gradient. The result is therefore the length of the path and the
    distance from the start at once. It is the same for AdamW without weight decay, and for :class:`RowAdamW`. With
    lazy updates the row rests after the first of them, so that ``steps=1`` gives the distance.

    Parameters
    ----------
    grad : array_like
        The gradient, of any shape. Only its size matters.
    steps : int
        The number of updates that are counted, at least 1. The first is that of the gradient.
    lr : float or sequence of float
        The learning rate, at least 0. A sequence of ``steps`` numbers gives that of each update, as a schedule does.
    betas : (float, float)
        Decay rates of the two moments, each in [0, 1).
    eps : float
        The number added to the denominator, at least 0.
    start_step : int or None
        The number of the update that sees the gradient. The first update of a training is 1. None stands for an update
        so late that bias correction no longer matters.

    Returns
    -------
    ndarray
        float64, with the shape of ``grad``: the distance, in the units of ``lr``.

    Raises
    ------
    InputError
        An argument out of range, or a schedule of another length than ``steps``.
    TypeError
        An argument of a wrong type.

    Notes
    -----
    Let :math:`g` be the gradient of update :math:`t`, and let there be none before or after it. At update :math:`t + j`
    the moments are :math:`m = (1-\beta_1)\beta_1^j g` and :math:`v = (1-\beta_2)\beta_2^j g^2`. The distance is

    .. math::

        \sum_{j=0}^{n-1} \eta_j \frac{(1-\beta_1)\beta_1^j\,|g| \,/\, (1-\beta_1^{t+j})}
        {|g| \sqrt{(1-\beta_2)\beta_2^j \,/\, (1-\beta_2^{t+j})} + \epsilon}

    In general this sum has no closed form. It has one in two limits, where bias correction no longer matters. For
    :math:`|g|\sqrt{1-\beta_2} \gg \epsilon` the gradient cancels, and :func:`adam_excursion_limit` has the result. For
    :math:`|g| \ll \epsilon` the distance is :math:`\eta |g| (1-\beta_1^n) / \epsilon`. It is then proportional to the
    gradient, as in gradient descent.

    Earlier in a training the corrected second moment is the mean of the squared gradients so far, here :math:`g^2/t`.
    The distance is then close to :math:`\eta |g| \sqrt{t} / (|g| + \epsilon \sqrt{t})`. This holds for
    :math:`1/(1-\beta_1) \ll t \ll 1/(1-\beta_2)`.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.

    Examples
    --------
    With the usual settings, one gradient in the first 150 updates moves a number by 5 to 12 learning rates. Late in a
    long training it is almost 32. The size of the gradient does not matter.

    >>> for step in (1, 10, 150, None):
    ...     print(step, adam_excursion([1e-5, 1e-3], 150, start_step=step).round(1))
    1 [6. 6.]
    10 [5.1 5.2]
    150 [12.  12.2]
    None [30.8 31.8]

    With ``eps=1e-4`` a small gradient moves it little.

    >>> for step in (1, 10, 150, None):
    ...     print(step, adam_excursion([1e-5, 1e-3], 150, eps=1e-4, start_step=step).round(1))
    1 [0.3 4.8]
    10 [0.1 3.6]
    150 [0.1 5.5]
    None [0.1 7.6]

    Let the learning rate fall linearly to 0 over 150 updates. A gradient of 5e-4 at update 75 then moves a number by 4
    times the first learning rate. A larger eps makes this shorter.

    >>> rates = [1 - step / 150 for step in range(74, 150)]
    >>> for eps in (1e-8, 1e-5, 1e-4, 1e-3):
    ...     print(f"{eps:g}: {adam_excursion(5e-4, 76, lr=rates, eps=eps, start_step=75):.2f}")
    1e-08: 3.99
    1e-05: 3.39
    0.0001: 1.43
    0.001: 0.21
    """
    size = np.abs(_numbers(grad, "grad"))
    check_integer(steps, "steps", 1)
    check_hyperparameters({"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
    if start_step is not None:
        check_integer(start_step, "start_step", 1)
    rates = _rates(lr, steps)
    moment, root = _moments(betas, steps, start_step)
    size = size[..., None]
    # Without a gradient there is no update, also where eps is 0 and the quotient would be 0 / 0.
    denominator = np.where(size == 0, 1.0, size * root + eps)
    return np.asarray(np.sum(rates * (size * moment) / denominator, axis=-1))


def adam_excursion_limit(betas: tuple[float, float] = (0.9, 0.999), steps: int | None = None) -> float:
    r"""Return how many learning rates Adam moves a number after one gradient, late in a training and with eps 0.

    Parameters
    ----------
    betas : (float, float)
        Decay rates of the two moments, each in [0, 1).
    steps : int, optional
        The number of updates that are counted, at least 1. By default all updates until the number rests.

    Returns
    -------
    float
        The distance in learning rates. It does not depend on the size of the gradient. It is infinite where momentum
        decays more slowly than the denominator (``betas[0] ** 2 >= betas[1]``) and ``steps`` is None.

    Raises
    ------
    InputError
        An argument out of range.
    TypeError
        An argument of a wrong type.

    Notes
    -----
    The distance is a geometric series with the ratio :math:`r = \beta_1 / \sqrt{\beta_2}`:

    .. math:: \frac{1-\beta_1}{\sqrt{1-\beta_2}} \cdot \frac{1-r^n}{1-r}

    It is the limit of :func:`adam_excursion` for an eps of 0 and a late ``start_step``. Bias correction makes the
    distance shorter in the first :math:`1/(1-\beta_2)` updates.

    Examples
    --------
    >>> [round(adam_excursion_limit((0.9, beta2)), 1) for beta2 in (0.999, 0.98, 0.95, 0.9)]
    [31.8, 7.8, 5.8, 6.2]
    """
    check_hyperparameters({"lr": 0.0, "betas": betas, "eps": 0.0, "weight_decay": 0.0})
    if steps is not None:
        check_integer(steps, "steps", 1)
    beta1, beta2 = map(float, betas)
    first = (1 - beta1) / math.sqrt(1 - beta2)
    if beta1 == 0 or steps == 1:
        return first
    if beta2 == 0:
        return math.inf  # the denominator is 0 from the second update on
    ratio = beta1 / math.sqrt(beta2)
    if steps is None:
        return first / (1 - ratio) if ratio < 1 else math.inf
    return first * (steps if ratio == 1 else (1 - ratio**steps) / (1 - ratio))


def _moments(
    betas: tuple[float, float], steps: int, start_step: int | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the first moment and the root of the second, corrected, after a gradient of 1. float64 [steps] each."""
    after = np.arange(steps, dtype=np.float64)
    moment, square = ((1 - beta) * beta**after for beta in map(float, betas))
    if start_step is not None:
        moment /= 1 - float(betas[0]) ** (start_step + after)
        square /= 1 - float(betas[1]) ** (start_step + after)
    return moment, np.sqrt(square)


def _rates(lr: Any, steps: int) -> npt.NDArray[np.float64]:
    rates = _numbers(lr, "lr")
    if rates.ndim > 1 or (rates.ndim and len(rates) != steps):
        raise InputError(f"lr has the shape {list(rates.shape)}: expected a number, or one for each of {steps} steps")
    if (rates < 0).any():
        raise InputError(f"lr holds {rates.min()}: expected numbers of at least 0")
    return rates


def _numbers(value: Any, name: str) -> npt.NDArray[np.float64]:
    """Return numbers as a float64 array, and refuse what is none.

    Raises
    ------
    InputError
        NaN or infinity.
    TypeError
        Not numbers.
    """
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors on another device or with a gradient
        found = np.asarray(None)
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{name} is {shown(value)}: expected a number or an array of numbers")
    numbers = found.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(f"{name} holds NaN or infinity: expected finite numbers")
    return numbers

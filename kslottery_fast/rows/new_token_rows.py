"""The rows that new tokens start from."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch

from kslottery_fast.base.arguments import check_choice, check_integer, shown
from kslottery_fast.base.errors import InputError

from .new_token_strings import pieces_of

TokenInit: TypeAlias = Literal["mean", "pieces"] | int | torch.Tensor | Mapping[str, str | int | torch.Tensor]
"""What the rows of new tokens start from.

"mean" is the mean of the table, over the tokens that the tokenizer had. "pieces" is the mean of the rows that the
string of the token was read as before. An integer is the row of that token. A tensor [k, d] holds the rows themselves.
A mapping gives each token a text of its own, such as a description, whose pieces are averaged, or an integer, or a
tensor [d].
"""

Sources: TypeAlias = list[Any]
"""For each new token: None for the mean of the table, a list of ids whose rows are averaged, or the row itself."""


def sources_of(init: Any, texts: Sequence[str], tokenizer: Any, height: int, d: int, name: str) -> Sources:
    """Return what each row of a table [height, d] starts from.

    Raises
    ------
    InputError
        The option is unknown, a token is missing in the mapping, a text has no pieces, or a tensor has another shape.
    TypeError
        ``init`` has another type.
    """
    if isinstance(init, str):
        check_choice(init, ("mean", "pieces"), name)
        if init == "mean":
            return [None] * len(texts)
        return [_pieces(text, tokenizer, height, name) for text in texts]
    if isinstance(init, Mapping):
        return _of_mapping(init, texts, tokenizer, height, d, name)
    if torch.is_tensor(init):
        _check_values(init, [len(texts), d], name)
        return list(init.detach())
    try:
        return [[_row(init, height, name)]] * len(texts)
    except TypeError:
        raise TypeError(
            f"{name} is {shown(init)}: expected 'mean', 'pieces', a token id, a tensor [{len(texts)}, {d}], or a "
            "mapping from each token to a text, a token id or a tensor"
        ) from None


def head_sources(sources: Sources) -> Sources:
    """Return what rows of an output head start from by default: the same, but for rows given as values, the mean."""
    return [None if torch.is_tensor(source) else source for source in sources]


def mean_row(table: torch.Tensor, known: int) -> torch.Tensor:
    """Return the mean [d] (or [] for a bias) of the first rows of a table, float32 (float64 of a float64 table)."""
    return table.detach()[:known].mean(dim=0, dtype=_wide(table))


def initial_rows(table: torch.Tensor, sources: Sources, known: int) -> torch.Tensor:
    """Return the rows [k, d] that new tokens start from, or the entries [k] of a bias.

    Parameters
    ----------
    table : torch.Tensor
        [V, d], or a bias [V].
    sources : Sources
        For each token, as :func:`sources_of` gives them.
    known : int
        The number of rows that belong to tokens. A table may be taller.
    """
    mean = mean_row(table, known)
    rows = []
    for source in sources:
        if source is None:
            rows.append(mean)
        elif torch.is_tensor(source):
            rows.append(source.to(mean))
        else:
            rows.append(table.detach()[torch.tensor(source, device=table.device)].mean(dim=0, dtype=mean.dtype))
    return torch.stack(rows)


def add_noise(rows: torch.Tensor, table: torch.Tensor, known: int, noise: float, generator: torch.Generator) -> None:
    """Add normal noise to rows, of ``noise`` times the standard deviation of the table's values about its mean row."""
    if not noise:
        return
    some = table.detach()[:known]
    square = torch.linalg.vector_norm(some, dtype=rows.dtype) ** 2 / some.numel()
    spread = (square - mean_row(table, known).square().mean()).clamp(min=0).sqrt()
    drawn = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    rows.add_(drawn.to(rows.device) * spread * noise)


def _of_mapping(
    init: Mapping[str, Any], texts: Sequence[str], tokenizer: Any, height: int, d: int, name: str
) -> Sources:
    for kind, some in (("lacks", set(texts) - set(init)), ("has", set(init) - set(texts))):
        if some:
            what = (
                "; give every new token a text, a token id or a tensor" if kind == "lacks" else ", which is not added"
            )
            raise InputError(f"{name} {kind} {', '.join(sorted(map(repr, some)))}{what}")
    made: Sources = []
    for text in texts:
        value, entry = init[text], f"{name}[{text!r}]"
        if isinstance(value, str):
            made.append(_pieces(value, tokenizer, height, entry))
        elif torch.is_tensor(value):
            _check_values(value, [d], entry)
            made.append(value.detach())
        else:
            made.append([_row(value, height, entry)])
    return made


def _pieces(text: str, tokenizer: Any, height: int, name: str) -> list[int]:
    ids = pieces_of(tokenizer, text)
    if not ids:
        raise InputError(f"{name}: the tokenizer knows no piece of {text!r}; give a description, or init='mean'")
    if max(ids) >= height:
        raise InputError(f"{name}: {text!r} has the token {max(ids)}, outside the {height} rows of the table")
    return ids


def _row(value: Any, height: int, name: str) -> int:
    token = check_integer(value, name, 0)
    if token >= height:
        raise InputError(f"{name} is {token}: expected a token id below {height}")
    return token


def _check_values(values: torch.Tensor, shape: list[int], name: str) -> None:
    if list(values.shape) != shape or not values.dtype.is_floating_point:
        raise InputError(
            f"{name} is a tensor of shape {list(values.shape)} and dtype {values.dtype}: expected {shape} of floats"
        )
    if not bool(values.isfinite().all()):
        raise InputError(f"{name} holds NaN or Inf")


def _wide(table: torch.Tensor) -> torch.dtype:
    return torch.float64 if table.dtype == torch.float64 else torch.float32

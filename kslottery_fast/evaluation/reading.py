"""Which rows each position has read: where two models that differ in some rows must predict the same token.

A causal model computes the prediction at a position from the rows of the tokens up to there, and from nothing else that
two models with other input rows do not share. If none of these rows differs, both models apply the same function to the
same numbers. This is a proof of agreement. It needs no margin and no alpha, but the output head must be the same.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from typing_extensions import Self

from kslottery_fast.base.arguments import check_path, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import write_safetensors

from .checks import check_batches, check_list, load_kind
from .logits import IGNORE_INDEX
from .predictions import Predictions
from .words import counted

_KIND = "kslottery-read-tokens"
_FIELDS = ("input_ids", "length", "last")


@dataclass(frozen=True, eq=False, repr=False)
class ReadTokens:
    """The tokens that a decoder-only model reads before each of the N supervised positions.

    Attributes
    ----------
    input_ids : torch.Tensor
        int64 [M], the tokens of all sentences, one sentence after the other, without padding.
    length : torch.Tensor
        int64 [S], the number of tokens of each sentence.
    last : torch.Tensor
        int64 [N], for each supervised position the index in ``input_ids`` of the last token that it reads. The
        positions are in the order of :class:`~kslottery_fast.evaluation.predictions.Predictions`.

    Examples
    --------
    >>> labels = torch.tensor([[-100, -100, 5, 9]])
    >>> tokens = read_tokens([{"input_ids": torch.tensor([[3, 4, 5, 9]]), "labels": labels}])
    >>> tokens, tokens.reads([5]).tolist(), tokens.reads([9]).tolist()
    (ReadTokens(2 positions of 1 sentence), [False, True], [False, False])
    """

    input_ids: torch.Tensor
    length: torch.Tensor
    last: torch.Tensor

    def __len__(self) -> int:
        return len(self.last)

    def __repr__(self) -> str:
        return f"ReadTokens({counted(len(self), 'position')} of {counted(len(self.length), 'sentence')})"

    @property
    def sentence(self) -> torch.Tensor:
        """The sentence of each position, int64 [N]."""
        return torch.bucketize(self.last, self.length.cumsum(0), right=True)

    def reads(self, token_ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Return whether each position reads one of some tokens, bool [N].

        Parameters
        ----------
        token_ids : int64 tensor or sequence of int
            The tokens. There may be none.

        Raises
        ------
        TypeError
            ``token_ids`` does not hold integers.
        """
        ids = (
            token_ids
            if torch.is_tensor(token_ids)
            else torch.tensor(check_list(token_ids, int, "token_ids", empty=True))
        )
        if ids.is_floating_point() and ids.numel():
            raise TypeError(f"token_ids is {shown(token_ids)}: expected integers")
        seen = torch.isin(self.input_ids, ids.to("cpu", torch.int64)).cumsum(0)
        before = torch.cat([seen.new_zeros(1), seen])[self.length.cumsum(0) - self.length]
        return seen[self.last] > before[self.sentence]

    def check_same(self, predictions: Predictions) -> None:
        """Raise InputError if these are not the tokens before the positions of some predictions."""
        after = self.last + 1
        same = len(self) == len(predictions) and bool((after < len(self.input_ids)).all())
        if not (same and torch.equal(self.input_ids[after], predictions.target)):
            raise InputError("the tokens that were read are not of the same positions as the predictions")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name).clone() for name in _FIELDS}
        write_safetensors(check_path(path, "path"), tensors, {"kind": _KIND})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            The file is missing or damaged, or holds something else.
        """
        expected = "tokens that were read: expected a file that ReadTokens.save wrote"
        path, tensors = load_kind(path, _KIND, _FIELDS, expected)
        found = {name: tensors[name] for name in _FIELDS}
        ids, length, last = found.values()
        plain = all(tensor.dtype == torch.int64 and tensor.ndim == 1 for tensor in found.values())
        if not plain or (length < 1).any() or int(length.sum()) != len(ids) or ((last < 0) | (last >= len(ids))).any():
            raise InputError(f"{path}: the lengths do not fit the tokens; make it again")
        return cls(**found)


def read_tokens(batches: Sequence[Mapping[str, torch.Tensor]]) -> ReadTokens:
    """Return the tokens that a decoder-only model reads before each supervised position.

    Parameters
    ----------
    batches : sequence of mapping
        What :func:`~kslottery_fast.evaluation.predictions.next_token_predictions` takes.

    Returns
    -------
    ReadTokens
        One entry for each supervised position, in the order of the predictions.

    Raises
    ------
    InputError
        There are no batches, no position is supervised, or labels and tokens differ in shape, as those of an
        encoder-decoder model do.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> ids = torch.tensor([[3, 4, 5], [6, 7, 0]])
    >>> mask, labels = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([[-100, 4, 5], [-100, 7, -100]])
    >>> tokens = read_tokens([{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    >>> tokens.input_ids.tolist(), tokens.last.tolist()
    ([3, 4, 5, 6, 7], [0, 1, 3])
    """
    ids, lengths, lasts, start = [], [], [], 0
    for batch in check_batches(batches):
        tokens, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
        if tokens.shape != labels.shape:
            raise InputError(
                f"batches holds input_ids {list(tokens.shape)} with labels {list(labels.shape)}: expected the same "
                "shape, as a decoder-only model needs it"
            )
        kept = batch["attention_mask"].cpu().bool() if "attention_mask" in batch else torch.ones_like(tokens).bool()
        places = (kept.flatten().cumsum(0) - 1).reshape(kept.shape) + start
        lasts.append(places[:, :-1][labels[:, 1:] != IGNORE_INDEX])
        ids.append(tokens[kept])
        lengths.append(kept.sum(dim=1))
        start += len(ids[-1])
    found = ReadTokens(torch.cat(ids), torch.cat(lengths), torch.cat(lasts))
    if len(found) == 0:
        raise InputError("batches supervise no position: every label is -100")
    return found

"""Predictions of several models that differ in rows: a model reads again only the sentences on which it differs.

Two models with the same output head predict the same after a prefix whose rows are the same in both, see
:mod:`~kslottery_fast.evaluation.reading`. Models that differ in few or in rare rows therefore share most predictions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kslottery_fast.base.arguments import check_integer, check_model
from kslottery_fast.base.errors import InputError

from .checks import check_list, check_progress
from .encoding import collate
from .generation import length_batches
from .predictions import Predictions, next_token_predictions
from .reading import ReadTokens

_COLUMNS = ("predicted", "margin", "target", "sentence")


@dataclass(frozen=True)
class Share:
    """How the predictions of one model are made.

    Attributes
    ----------
    source : int or None
        The place of the earlier model whose predictions are copied, or None.
    sentences : list of int
        The sentences that the model reads itself, in ascending order.
    """

    source: int | None
    sentences: list[int]


def share_plan(models: Sequence[torch.Tensor], sentences: int, tokens: ReadTokens | None) -> list[Share]:
    """Plan the predictions of models that differ only in rows.

    Parameters
    ----------
    models : sequence of int64 tensor
        For each model the ids of the rows that were changed in it, always to the same values.
    sentences : int
        How many sentences are predicted.
    tokens : ReadTokens or None
        What is read. None if the models also differ in their output heads, and share nothing.

    Returns
    -------
    list of Share
        One for each model, in order. A model copies from the earlier model with which it shares the most sentences.

    Raises
    ------
    InputError
        There are no models.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> tokens = ReadTokens(torch.tensor([3, 4, 5, 4, 5]), torch.tensor([3, 2]), torch.tensor([1, 3]))
    >>> share_plan([torch.tensor([3, 4]), torch.tensor([4])], 2, tokens)
    [Share(source=None, sentences=[0, 1]), Share(source=0, sentences=[0])]
    """
    rows = [set(ids.tolist()) for ids in check_list(models, torch.Tensor, "models")]
    check_integer(sentences, "sentences", 1)
    every = list(range(sentences))
    plan = [Share(None, every)]
    for place in range(1, len(rows)):
        found = [Share(None, every)]
        if tokens is not None:
            for source in range(place):
                reads = tokens.reads(sorted(rows[place] ^ rows[source]))
                found.append(Share(source, tokens.sentence[reads].unique().tolist()))
        plan.append(min(found, key=lambda share: (len(share.sentences), share.source is None)))
    return plan


def sentence_predictions(
    model: nn.Module,
    features: Sequence[Mapping[str, Sequence[int]]],
    sentences: Sequence[int],
    *,
    pad_token_id: int,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Return the predictions for some sentences, which are read in batches of similar length.

    Parameters
    ----------
    model : torch.nn.Module
        As for :func:`~kslottery_fast.evaluation.predictions.next_token_predictions`.
    features : sequence of mapping
        All sentences, as :func:`~kslottery_fast.evaluation.encoding.encode` returns them.
    sentences : sequence of int
        Which of them are read, in ascending order.
    pad_token_id : int
        Fills the batches.
    batch_size : int
        Sentences in a batch.
    progress : callable, optional
        Called with (finished sentences, sentences).

    Returns
    -------
    Predictions
        In the order of ``sentences``, with their numbers.

    Raises
    ------
    InputError
        There are no sentences, or :func:`~kslottery_fast.evaluation.predictions.next_token_predictions` refuses the
        batches.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.encoding import Example, encode
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> features = [encode(tokenizer, Example("w", target)) for target in ("x", "xyz", "xy")]
    >>> sentence_predictions(model, features, [0, 1], pad_token_id=27).sentence.tolist()
    [0, 0, 1, 1, 1, 1]
    """
    check_model(model)
    features = check_list(features, Mapping, "features", ", e.g. of encode(tokenizer, example)")  # type: ignore[type-abstract]
    chosen = check_list(sentences, int, "sentences")
    check_integer(batch_size, "batch_size", 1)
    check_progress(progress)
    lengths = [len(features[i]["input_ids"]) for i in chosen]
    order = [[chosen[place] for place in batch] for batch in length_batches(lengths, batch_size)]
    batches = [collate([features[i] for i in batch], pad_token_id) for batch in order]
    found = next_token_predictions(model, batches, progress=progress)
    number = torch.tensor([i for batch in order for i in batch])[found.sentence]
    places = torch.sort(number, stable=True).indices
    columns = {name: getattr(found, name)[places] for name in _COLUMNS}
    return Predictions(**(columns | {"sentence": number[places]}))


def merge_predictions(source: Predictions, news: Predictions) -> Predictions:
    """Return the predictions of ``source`` with those of ``news`` in place of the same sentences.

    Parameters
    ----------
    source, news : Predictions
        Predictions on the same sentences, and on some of them.

    Raises
    ------
    InputError
        ``news`` has a sentence that ``source`` has not, or other positions of it.

    Examples
    --------
    >>> ids, margin = torch.tensor([5, 6, 7]), torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    >>> source = Predictions(ids, margin, ids, torch.tensor([0, 0, 1]))
    >>> news = Predictions(torch.tensor([9]), margin[:1], ids[2:], torch.tensor([1]))
    >>> merge_predictions(source, news).predicted.tolist()
    [5, 6, 9]
    """
    places = torch.isin(source.sentence, news.sentence)
    if not all(torch.equal(getattr(source, name)[places], getattr(news, name)) for name in ("target", "sentence")):
        raise InputError("news is not of the same positions as source: give both models the same sentences")
    columns = {name: getattr(source, name).clone() for name in _COLUMNS}
    for name, column in columns.items():
        column[places] = getattr(news, name)
    return Predictions(**columns)

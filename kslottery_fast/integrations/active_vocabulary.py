"""The active vocabulary of a TicketTrainer: the rows that a dataset reads, and a check that batches read no others."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from kslottery_fast.base.arguments import check_model, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.attach import attached_model, get_rows
from kslottery_fast.rows.token_ids import active_token_ids


def active_vocabulary(dataset: Dataset[Any] | Sequence[Mapping[str, Any]], model: nn.Module) -> torch.Tensor:
    """Return the token ids that the embeddings of a model read in one pass over a dataset.

    Parameters
    ----------
    dataset : map-style Dataset or list
        Examples as mappings that hold token ids.
    model : nn.Module
        The model that is to train on them. An encoder-decoder model reads the labels too.

    Returns
    -------
    torch.Tensor
        int64 [k], distinct and sorted.

    Raises
    ------
    InputError
        The dataset streams, or has no token ids.
    TypeError
        ``dataset`` is not a dataset, or ``model`` is not a model.

    Examples
    --------
    >>> active_vocabulary([{"input_ids": [5, 2, 5]}, {"input_ids": [9]}], nn.Embedding(10, 4))
    tensor([2, 5, 9])
    """
    check_model(model)
    check_dataset(dataset, "dataset")
    if streams(dataset):
        raise InputError(
            "tickets='active' reads all of train_dataset beforehand, and this one streams: load it whole, or pass the "
            "token ids in place of 'active' (active_token_ids finds them in one pass over the data)"
        )
    keys = embedding_keys(model)
    first: Any = next(iter(examples_of(dataset)), {})
    if not isinstance(first, Mapping) or not any(key in first for key in keys):
        found = (", ".join(map(str, first)) or "no example") if isinstance(first, Mapping) else shown(first)
        raise InputError(
            f"tickets='active' reads {' or '.join(keys)}, and train_dataset has {found}: "
            "tokenize it before the Trainer is built, or pass the token ids in place of 'active'"
        )
    ids = active_token_ids(examples_of(dataset), keys=keys)
    return torch.cat([ids, torch.tensor(tokens_of_decoder(model), dtype=torch.int64)]).unique()


def check_dataset(dataset: Any, name: str) -> None:
    """Refuse what cannot be a dataset of examples.

    Raises
    ------
    TypeError
        A str, a model, a list of texts, or anything else that is neither read by index nor iterated over.
    """
    texts = isinstance(dataset, (list, tuple)) and len(dataset) > 0 and isinstance(dataset[0], str)
    readable = hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")
    if texts or not readable or isinstance(dataset, (str, bytes, nn.Module)):
        raise TypeError(f"{name} is {shown(dataset)}: expected examples such as [{{'input_ids': [5, 2]}}]")


def streams(dataset: Any) -> bool:
    """Tell whether a dataset can only be read from its beginning, like an iterator."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")


def examples_of(dataset: Any) -> Iterable[Any]:
    """Iterate once over a dataset that has a length.

    Python's own iteration ends with an IndexError, which a map-style Dataset need not raise: it may wrap around.
    """
    if isinstance(dataset, (list, tuple)):
        return dataset
    if hasattr(type(dataset), "__iter__"):
        return itertools.islice(dataset, len(dataset))
    return (dataset[index] for index in range(len(dataset)))


def embedding_keys(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the inputs that the embeddings of a model read."""
    return ("input_ids", "decoder_input_ids", "labels") if _decodes(model) else ("input_ids",)


def tokens_of_decoder(model: nn.Module) -> list[int]:
    """Return the tokens that an encoder-decoder model reads in addition to its inputs.

    A decoder reads the labels shifted by one: first its start token, and the padding token in place of -100.
    """
    if not _decodes(model):
        return []
    config: Any = model.config
    special = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    return [token for token in special if token is not None]


def _decodes(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def check_batch(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse a batch that reads a row which does not train.

    Parameters
    ----------
    model : nn.Module
        A model with attached rows.
    inputs : mapping
        The batch, with ``input_ids`` as a tensor.

    Raises
    ------
    InputError
        The batch reads such a row. The message names the first such token.
    TypeError
        ``model`` is not a model, or ``inputs`` is not a mapping.
    """
    embedding = get_rows(model)
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs is {shown(inputs)}: expected a batch, a mapping such as a collator makes")
    read = {"input_ids": inputs.get("attention_mask"), "decoder_input_ids": None}
    if _decodes(attached_model(model)) and inputs.get("decoder_input_ids") is None:
        # The model makes them from the labels. All labels count: most models leave out the last one, and mBART moves it
        # to the front. The start token and the token in place of -100 are in the active vocabulary in any case.
        read["labels"] = inputs["labels"] >= 0 if inputs.get("labels") is not None else None
    for key, counted in read.items():
        ids = inputs.get(key)
        if ids is None:
            continue
        seen = ids if counted is None or counted.shape != ids.shape else ids[counted.bool()]
        outside = seen[embedding.slots[seen] < 0]
        if len(outside):
            raise InputError(
                f"{key} holds token {outside[0].item()}, which is not in the active vocabulary that trains: leave the "
                "example out, or build the Trainer with a train_dataset that has it"
            )

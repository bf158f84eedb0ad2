"""Which tokens of a model are new: their rows were made by :func:`kslottery_fast.add_tokens`, not by a training."""

from collections.abc import Iterable

from torch import nn

NEW_TOKENS = "_kslottery_new_tokens"
"""The attribute of an embedding with the ids (a tuple) of the tokens that were added to it."""


def new_tokens(model: nn.Module) -> tuple[int, ...]:
    """Return the ids of the tokens that were added to a model, in ascending order. Wrappers are looked through."""
    return tuple(sorted({token for module in model.modules() for token in vars(module).get(NEW_TOKENS, ())}))


def mark_new_tokens(embeddings: Iterable[nn.Module], token_ids: Iterable[int]) -> None:
    """Remember on the embeddings themselves that these tokens are new: every model that holds one can ask it."""
    added = list(token_ids)
    for embedding in embeddings:
        setattr(embedding, NEW_TOKENS, tuple(sorted({*vars(embedding).get(NEW_TOKENS, ()), *added})))

"""The row of ``padding_idx``, which gets no gradient from an ``nn.Embedding`` and is easily forgotten."""

from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_flag
from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.options import HeadRole
from kslottery_fast.base.ticket_ids import token_text
from kslottery_fast.base.tokenizer import Tokenizer


def check_train_padding(value: Any) -> None:
    """Refuse what is neither None nor a bool."""
    if value is not None:
        check_flag(value, "train_padding")


def warn_padding(
    embedding: nn.Embedding,
    ids: torch.Tensor,
    role: HeadRole,
    train_padding: bool | None,
    tokenizer: Tokenizer | None,
) -> None:
    """Warn of a row that will not train because it is that of ``padding_idx``. A tied head trains it."""
    pad = embedding.padding_idx
    if train_padding is not None or role == "tied" or pad is None or not bool((ids == pad).any()):
        return
    token = f"{pad}" if tokenizer is None else f"{pad} ({token_text(tokenizer, pad)!r})"
    warn_caller(
        f"token_ids has the padding token {token}, whose input row does not train: it is padding_idx of the "
        "embedding, which gets no gradient. Pass train_padding=True to train it where the token is not padding "
        "(labels of -100 and the attention mask decide), or train_padding=False to keep it as it is"
    )

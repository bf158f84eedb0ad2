"""Adapters on the Hugging Face Hub: :func:`push_adapter` puts one there, and ``load_adapter`` takes its id."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import nn

from kslottery_fast.base.files import write_text
from kslottery_fast.base.hub import check_repository, is_repository, push_folder
from kslottery_fast.base.tokenizer import Tokenizer

from .adapter_card import HERE
from .adapter_gather import rows_of
from .adapter_rows import write_adapter


def push_adapter(
    model: nn.Module,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    base: Literal["auto", "untied"] = "auto",
    base_model_name_or_path: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str | None:
    """Save the rows attached to a model as an adapter in a repository on the Hugging Face Hub.

    The repository is made if it is missing. Its page is the card of the adapter: base model, tokens, numbers, and how
    to load it here and in PEFT. Endpoint, login and offline mode are those of huggingface_hub (``hf auth login``,
    ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``).

    Parameters
    ----------
    model : nn.Module
        A model with attached rows. It is not changed. If it is sharded, all processes have to call this.
    repo_id : str
        "org/name", or "name" for a repository of your own.
    revision : str, optional
        A branch, which is made if it is missing. By default it is the main one.
    private : bool, optional
        Whether a new repository is private. By default the Hub decides.
    commit_message : str, optional
        The message of the commit.
    base, base_model_name_or_path, tokenizer, metrics
        As for :func:`kslottery_fast.save_adapter`.

    Returns
    -------
    str or None
        The address of the commit. None on all processes but the first, if the model is sharded.

    Raises
    ------
    InputError
        Whatever :func:`kslottery_fast.save_adapter` refuses, before the Hub is asked for anything. The Hub refuses, or
        cannot be reached.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast import attach_rows
    >>> model = attach_rows(nn.Embedding(10, 4), [7, 3])
    >>> push_adapter(model, "org/name", base="other")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: base is 'other': expected 'auto' or 'untied'
    """
    check_repository(repo_id, revision, private, commit_message)
    about = rows_of(model, base, base_model_name_or_path, tokenizer, metrics)
    if about is None:
        return None
    message = commit_message or "Upload the adapter"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "adapter")
        write_adapter(folder, about)
        name_repository(folder / "README.md", repo_id, revision)
        return push_folder(folder, repo_id, revision=revision, private=private, commit_message=message)


def name_repository(card: Path, repo_id: str, revision: str | None = None) -> None:
    """Let the commands on the card of an adapter load the repository that the card is in.

    Parameters
    ----------
    card : Path
        Its README.md.
    repo_id : str
        "org/name". A name without its owner, which no command could load, leaves the card as it is.
    revision : str, optional
        The branch of the repository.
    """
    if is_repository(repo_id):
        place = json.dumps(repo_id) + ("" if revision is None else f", revision={json.dumps(revision)}")
        write_text(card, card.read_text(encoding="utf-8").replace(HERE, place))

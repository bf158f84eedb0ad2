"""Tokenizers beside checkpoints: where one lies, and loading it from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError

_FILES = ("tokenizer*", "vocab.*", "spiece.model")


def tokenizer_folder(*checkpoints: Path) -> Path | None:
    """The first folder with the files of a tokenizer: a checkpoint itself, or the folder that its file lies in."""
    folders = (path if path.is_dir() else path.parent for path in checkpoints)
    return next((folder for folder in folders if any(any(folder.glob(names)) for names in _FILES)), None)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, from its own files and without running code of it.

    Raises
    ------
    InputError
        A folder without a tokenizer, or with a damaged one.
    """
    # transformers would look for the name of a folder without any of the files on the hub.
    if not folder.is_dir() or tokenizer_folder(folder) is None:
        raise InputError(f"{folder} holds no tokenizer: expected a folder as save_pretrained writes it")
    import transformers  # takes seconds, which telling where a tokenizer lies does not need

    from .pretrained import quiet_transformers

    try:
        with quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what transformers raises for damaged files depends on the kind of tokenizer
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {error}") from error

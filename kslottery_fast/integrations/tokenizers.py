"""Tokenizers of checkpoints: finding the folder of one, and loading it from its own files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kslottery_fast.base.arguments import check_path
from kslottery_fast.base.errors import InputError
from kslottery_fast.checkpoints.hub_address import hub_address
from kslottery_fast.checkpoints.hub_repository import fetched_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("tokenizer*", "vocab.*", "spiece.model")


def _folder(path: str | os.PathLike[str], local: Path) -> Path:
    """The folder in which the tokenizer of a checkpoint is looked for."""
    if (address := hub_address(path)) is None:
        return local if local.is_dir() else local.parent
    return fetched_folder(address, [*_FILES, "special_tokens_map.json", "added_tokens.json", "merges.txt", "*.jinja"])


def tokenizer_folder(*checkpoints: str | os.PathLike[str]) -> Path | None:
    """Return the first folder that has the files of a tokenizer, or None.

    Parameters
    ----------
    *checkpoints : str or path
        Folders, or files whose folders are looked at. The files of a repository on the Hub, such as "org/name", are
        fetched into the cache.

    Returns
    -------
    Path or None

    Raises
    ------
    TypeError
        A checkpoint is not a str or path.

    Examples
    --------
    >>> print(tokenizer_folder("no/such/model.safetensors"))
    None
    """
    paths = [(path, check_path(path, "checkpoints")) for path in checkpoints]
    folders = (_folder(path, local) for path, local in paths)
    return next((folder for folder in folders if any(any(folder.glob(names)) for names in _FILES)), None)


def load_tokenizer(folder: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a folder from its own files, without running code from that folder.

    Parameters
    ----------
    folder : str or path
        A folder that ``save_pretrained`` wrote.

    Returns
    -------
    transformers.PreTrainedTokenizerBase

    Raises
    ------
    InputError
        The folder has no tokenizer, or a damaged one.
    TypeError
        ``folder`` is not a str or path.

    Examples
    --------
    >>> load_tokenizer("no/such/folder")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: no/such/folder holds no tokenizer: expected a folder that save_pretrained ...
    """
    folder = check_path(folder, "folder")
    # transformers would look up the name of a folder without any of these files on the Hub.
    if not folder.is_dir() or tokenizer_folder(folder) is None:
        raise InputError(f"{folder} holds no tokenizer: expected a folder that save_pretrained wrote")
    import transformers  # takes seconds, which finding the folder of a tokenizer does not need

    from .pretrained import quiet_transformers

    try:
        with quiet_transformers():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the class that transformers raises for damaged files depends on the tokenizer
        raise InputError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded

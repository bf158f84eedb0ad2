"""Folders on the Hugging Face Hub, through huggingface_hub: its cache, its tokens, its offline mode, its endpoint."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .arguments import check_flag, check_path, shown
from .errors import InputError
from .visible import visible_token

TICKETS_FILE = "tickets.json"
"""The file that holds the tickets of a repository."""
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_repository(path: str | os.PathLike[str]) -> bool:
    """Tell whether a string names a repository of the Hub, "org/name". A file or folder of that name comes first.

    Examples
    --------
    >>> is_repository("org/name"), is_repository("name"), is_repository("a/b/c"), is_repository(Path("org/name"))
    (True, False, False, False)
    >>> is_repository("./name"), is_repository("org/tickets.json")
    (False, False)
    """
    if not isinstance(path, str) or path.endswith(".json"):  # else a missing file would be looked for on the Hub
        return False
    return _REPOSITORY.fullmatch(path) is not None and not Path(path).exists()


def found_folder(path: str | os.PathLike[str], files: Sequence[str], revision: str | None, name: str = "path") -> Path:
    """Return a local path as it is, and for the id of a Hub repository the folder of its files in the cache.

    Parameters
    ----------
    path : str or path
        A local path, or "org/name".
    files : sequence of str
        The files to fetch, as names or patterns. The first is a name, and has to be there.
    revision : str, optional
        A branch, tag or commit of the repository.
    name : str
        What an error message calls ``path``.

    Raises
    ------
    InputError
        The repository, the revision or the network is not there, or a revision is given for a local path.
    TypeError
        An argument has the wrong type.
    """
    local = check_path(path, name, "a path, or the id of a repository on the Hub, such as 'org/name'")
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise TypeError(f"revision is {shown(revision)}: expected a branch, tag or commit, as a str")
    if not is_repository(path):
        if revision is not None:
            raise InputError(
                f"revision is {revision!r}, but {name} {local} is not the id of a repository on the Hub, such as "
                "'org/name'; leave revision out"
            )
        return local
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(os.fspath(path), revision=revision, allow_patterns=list(files))
    except Exception as error:  # of huggingface_hub, or of the HTTP library of its version
        raise InputError(
            f"{name} {str(path)!r} is neither a local path nor a repository that the Hub gives "
            f"({_first_line(error)}); check the id, the revision, your login (hf auth login) and the network"
        ) from error
    if not Path(folder, files[0]).is_file():
        raise InputError(f"{name} {str(path)!r}: the repository on the Hub has no file {files[0]}")
    return Path(folder)


def front_matter(base_model: str | None, library: str, tags: Sequence[str]) -> str:
    """Return the head of a README.md, which the Hub reads. A base model is named if it is the id of a repository.

    Examples
    --------
    >>> print(front_matter("org/base", "peft", ["text"]))
    ---
    base_model: "org/base"
    library_name: peft
    tags:
    - text
    ---
    <BLANKLINE>
    """
    base = [f"base_model: {json.dumps(base_model)}"] if base_model and is_repository(base_model) else []
    return "\n".join(["---", *base, f"library_name: {library}", "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def table_cell(text: str) -> str:
    r"""Return a token as it can stand between backticks in a cell of a Markdown table.

    Examples
    --------
    >>> print(table_cell(" a|b`"))
    ␣a\|b'
    """
    return visible_token(text).replace("|", "\\|").replace("`", "'")


def check_repository(repo_id: str, revision: str | None, private: bool | None, commit_message: str | None) -> None:
    """Refuse what cannot be the place on the Hub that a folder is pushed to.

    Raises
    ------
    InputError
        ``repo_id`` is no id of a repository.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> check_repository("a/b/c", None, None, None)
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: repo_id is 'a/b/c': expected the id of a repository, 'name' or 'org/name'
    """
    if not isinstance(repo_id, str):
        raise TypeError(f"repo_id is {shown(repo_id)}: expected the id of a repository, 'name' or 'org/name'")
    if not re.fullmatch(rf"({_REPOSITORY.pattern})|\w[\w.-]*", repo_id):
        raise InputError(f"repo_id is {shown(repo_id)}: expected the id of a repository, 'name' or 'org/name'")
    for text, name in ((revision, "revision"), (commit_message, "commit_message")):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} is {shown(text)}: expected a str or None")
    if private is not None:
        check_flag(private, "private")


def push_folder(
    folder: Path, repo_id: str, *, revision: str | None, private: bool | None, commit_message: str | None
) -> str:
    """Put the files of a folder into a model repository, which is made if it is missing. Return the commit's address.

    Raises
    ------
    InputError
        The Hub refuses, or cannot be reached.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(library_name="kslottery-fast")
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        made = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message=commit_message
        )
    except Exception as error:  # of huggingface_hub, or of the HTTP library of its version
        raise InputError(
            f"repo_id {repo_id!r}: the Hub did not take the files ({_first_line(error)}); check the id, your login "
            "(hf auth login) and the network"
        ) from error
    return str(made.commit_url)


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""Addresses on the Hugging Face Hub: a repository, its revision, and a file or folder in it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

PREFIX = "hf://"
FILES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")
"""How files end. Without ``hf://`` such a name is that of a local file: a misspelt path is not looked for elsewhere."""
_REPOSITORY = r"(?P<repository>\w[\w.-]*/\w[\w.-]*)"
_PLAIN = re.compile(rf"{_REPOSITORY}(?:@(?P<revision>[^@\s]+))?")
_WHOLE = re.compile(
    rf"hf://{_REPOSITORY}(?:@(?P<first>refs/[^/@\s]+/[^/@\s]+|[^/@\s]+))?(?:/(?P<path>[^@]+?))?/?(?:@(?P<last>[^@\s]+))?"
)
FORMS = "org/name, org/name@revision or hf://org/name/file@revision"
"""What an address looks like, for messages."""


@dataclass(frozen=True)
class Address:
    """A place on the Hub.

    Attributes
    ----------
    repository : str
        "org/name".
    path : str
        A file or folder in the repository. Empty for the repository itself.
    revision : str or None
        A branch, tag or commit. None for the main branch.
    text : str
        What the user wrote.
    """

    repository: str
    path: str
    revision: str | None
    text: str


def hub_address(text: str | os.PathLike[str]) -> Address | None:
    """Read an address on the Hub. Anything else gives None, and so does a file or folder that exists here.

    Examples
    --------
    >>> hub_address("org/name@v1")
    Address(repository='org/name', path='', revision='v1', text='org/name@v1')
    >>> address = hub_address("hf://org/name/sub/model.safetensors@refs/pr/2")
    >>> address.repository, address.path, address.revision
    ('org/name', 'sub/model.safetensors', 'refs/pr/2')
    >>> hub_address("hf://org/name@v1/sub").path
    'sub'
    >>> hub_address("runs/model.safetensors"), hub_address("a/b/c"), hub_address(Path("org/name"))
    (None, None, None)
    """
    if not isinstance(text, str) or _is_here(text):
        return None
    if found := _WHOLE.fullmatch(text):
        if found["first"] and found["last"]:
            return None
        return Address(found["repository"], found["path"] or "", found["first"] or found["last"], text)
    found = _PLAIN.fullmatch(text)
    if found is None or found["repository"].lower().endswith(FILES):
        return None
    return Address(found["repository"], "", found["revision"], text)


def _is_here(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # the system cannot have such a name
        return False

"""A repository on the Hugging Face Hub at one commit: which files it has, and how each of them is read."""

import errno
import fnmatch
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kslottery_fast.base.caller import warn_caller
from kslottery_fast.base.errors import InputError

from .adapter_parts import CONFIG, MODELS, OLD_WEIGHTS, WEIGHTS
from .hub_address import FILES, Address
from .hub_client import LIBRARY, HubFile, asked

_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG)
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how hf_xet, which is written in Rust, quotes the system
_MOST_JSON = 64 << 20  # bytes of an index or a config.json, which are read whole


@dataclass(frozen=True)
class Repository:
    """A repository at one commit.

    Attributes
    ----------
    address : Address
        What the user asked for.
    commit : str
        The commit that the revision was when the repository was opened.
    names : sequence of str
        The names of all files.
    """

    address: Address
    commit: str
    names: Sequence[str]

    def __str__(self) -> str:
        return self.address.text

    @property
    def folder(self) -> str:
        """The folder that the address names, or that of the file which it names. The root is empty."""
        path = self.address.path
        return path.rpartition("/")[0] if path in self.names else path

    def inside(self, folder: str) -> list[str]:
        """The names of the files in a folder, without it."""
        return [each.rpartition("/")[2] for each in self.names if each.rpartition("/")[0] == folder]

    def file(self, name: str) -> HubFile | Path:
        """A file of the repository: the one in the cache of huggingface_hub if it is there, else the one on the Hub."""
        import huggingface_hub

        cached = huggingface_hub.try_to_load_from_cache(self.address.repository, name, revision=self.commit)
        return Path(cached) if isinstance(cached, str) else HubFile(self.address, self.commit, name)

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        file = self.file(name)
        content = file.read_all(_MOST_JSON) if isinstance(file, HubFile) else file.read_bytes()
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not valid JSON ({error})") from None

    def whole(self, names: Sequence[str], why: str) -> list[Path]:
        """Download whole files into the cache of huggingface_hub. A warning says beforehand how large they are.

        Parameters
        ----------
        names : sequence of str
            The files.
        why : str
            Why they cannot be read by byte ranges.

        Raises
        ------
        InputError
            The Hub does not give them.
        """
        import huggingface_hub

        found = {name: self.file(name) for name in names}
        absent = [file for file in found.values() if isinstance(file, HubFile)]
        if absent:
            total = sum(file.measured() for file in absent)
            size = f"{total >> 20:,} MiB" if total >> 20 else "less than 1 MiB"
            listed = " and ".join(file.name for file in absent[:2])
            if len(absent) > 2:
                listed = f"{absent[0].name} and {len(absent) - 1:,} more files"
            warn_caller(
                f"{self}: {listed} ({size}) {'is' if len(absent) == 1 else 'are'} downloaded whole, into the cache of "
                f"huggingface_hub: {why}"
            )
        for file in absent:
            download = partial(
                huggingface_hub.hf_hub_download,
                self.address.repository,
                file.name,
                revision=self.commit,
                library_name=LIBRARY,
            )
            found[file.name] = Path(asked(partial(_in_cache, download, str(file)), self.address, str(file)))
        return [file for file in found.values() if isinstance(file, Path)]

    def holds_adapter(self) -> bool:
        """Tell whether the address names an adapter: its folder, or the weights in it."""
        names = self.inside(self.folder)
        if CONFIG not in names:
            return False
        chosen = self.address.path.rpartition("/")[2] if self.address.path in self.names else ""
        if chosen:
            return chosen in (WEIGHTS, OLD_WEIGHTS, CONFIG)
        return not any(fnmatch.fnmatchcase(name, each) for name in names for each in MODELS)

    def adapter(self) -> Path:
        """Download the adapter that the address names, and return its folder in the cache.

        Raises
        ------
        InputError
            It lacks its weights, or the Hub does not give them.
        """
        names = self.inside(self.folder)
        weights = next((name for name in (WEIGHTS, OLD_WEIGHTS) if name in names), None)
        if weights is None:
            raise InputError(f"{self} holds {CONFIG} and no {WEIGHTS}: upload the adapter again, with all of its files")
        places = [f"{self.folder}/{name}" if self.folder else name for name in (CONFIG, weights)]
        return self.whole(places, "all of an adapter is needed")[0].parent


def _in_cache(download: Callable[[], str], what: str) -> str:
    """Call what downloads into the cache of huggingface_hub, and return its path there.

    With hf_xet a download fails with a bare RuntimeError, whatever the reason is. It becomes what it would be without.
    """
    try:
        return download()
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise _no_place(what, str(error.strerror)) from error
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        found = _SYSTEM_ERROR.search(str(error))
        if found and int(found[1]) in _NO_PLACE:
            raise _no_place(what, os.strerror(int(found[1]))) from error
        raise ConnectionError(str(error)) from error


def _no_place(what: str, reason: str) -> InputError:
    from huggingface_hub import constants

    return InputError(
        f"{what} cannot be written to the cache of huggingface_hub, {constants.HF_HUB_CACHE} ({reason}); free space "
        "there, or set HF_HOME to another folder"
    )


def find_repository(address: Address, name: str) -> Repository:
    """Ask the Hub for the commit and the files of a repository. Nothing else is fetched.

    Raises
    ------
    InputError
        The Hub does not give it, or it has no such file or folder. The message calls it ``name``.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(library_name=LIBRARY)
    ask = partial(api.model_info, address.repository, revision=address.revision)
    info = asked(ask, address, f"{name} {address.text}")
    if info.sha is None:
        raise InputError(f"{name} {address.text}: the Hub does not say which commit it is")
    found = Repository(address, info.sha, tuple(each.rfilename for each in info.siblings or ()))
    if address.path not in found.names and not found.inside(address.path):
        raise InputError(f"{name} {address.text}: {address.repository} has no file or folder {address.path} on the Hub")
    return found


def cached_folder(address: Address, name: str) -> Path:
    """Find the folder of a repository in the cache of huggingface_hub, for HF_HUB_OFFLINE.

    Raises
    ------
    InputError
        The cache does not have it.
    """
    import huggingface_hub

    try:
        root = huggingface_hub.snapshot_download(address.repository, revision=address.revision, local_files_only=True)
    except Exception as error:  # of huggingface_hub, whose class depends on its version
        raise InputError(
            f"{name} is {address.text}: no local path, and the cache of huggingface_hub does not have it; unset "
            "HF_HUB_OFFLINE to read it from the Hub"
        ) from error
    return Path(root, address.path)


def fetched_folder(address: Address, patterns: Sequence[str]) -> Path:
    """Fetch small files of a repository, such as those of its tokenizer, into the cache, and return their folder.

    Raises
    ------
    InputError
        The Hub does not give them.
    """
    import huggingface_hub

    folder = address.path.rpartition("/")[0] if address.path.endswith(FILES) else address.path
    inside = [f"{folder}/{pattern}" if folder else pattern for pattern in patterns]
    fetch = partial(
        huggingface_hub.snapshot_download, address.repository, revision=address.revision, allow_patterns=inside
    )
    return Path(asked(partial(_in_cache, fetch, address.text), address, address.text), folder)

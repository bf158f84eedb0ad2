"""Byte ranges of files on the Hugging Face Hub, through the client, the token and the endpoint of huggingface_hub."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from kslottery_fast.base.errors import InputError

from .hub_address import Address

T = TypeVar("T")

TRIES = 6
"""How often a request is sent until it is given up. A request that was interrupted goes on where it stopped.

A try that got on does not count. So a large block survives any number of interruptions.
"""
_GOT_ON = 4096  # bytes that a try has to bring
LIBRARY = "kslottery-fast"
_PAUSE = 0.5  # seconds before the second try, doubled for each further one
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # status codes of troubles that may pass
_PIECE = 1 << 16  # bytes
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HubFile:
    """A file of a repository at one commit.

    Parameters
    ----------
    address : Address
        What the user asked for, for messages.
    commit : str
        The commit that the revision was when the repository was opened.
    name : str
        The file in the repository.
    """

    def __init__(self, address: Address, commit: str, name: str) -> None:
        self.address, self.commit, self.name = address, commit, name
        self.size: int | None = None

    def __str__(self) -> str:
        return f"hf://{self.address.repository}/{self.name}@{self.commit[:7]}"

    def read(self, begin: int, end: int) -> bytearray:
        """Read bytes ``begin`` to ``end`` (exclusive), which must not be empty.

        Raises
        ------
        InputError
            The Hub refuses, sends something else, or cannot be reached.
        """
        part = _Part(self, begin, end)
        asked(part.receive, self.address, str(self), lambda: part.have)
        return part.data

    def measured(self) -> int:
        """The size of the file in bytes. Its first bytes are fetched if nothing was yet.

        Raises
        ------
        InputError
            As :meth:`read`.
        """
        if self.size is None:
            self.read(0, 1)
        assert self.size is not None
        return self.size

    def read_all(self, most: int) -> bytearray:
        """Read a small file of at most ``most`` bytes.

        Raises
        ------
        InputError
            As :meth:`read`, or the file is larger.
        """
        start = self.read(0, 1)  # tells the size
        if self.size is None or self.size > most:
            raise InputError(f"{self} has {self.size} bytes: expected at most {most}")
        return start + (self.read(1, self.size) if self.size > 1 else b"")


class _Part:
    """A range of bytes that is being received. What has arrived stays if the connection breaks."""

    def __init__(self, file: HubFile, begin: int, end: int) -> None:
        self.file, self.begin, self.data, self.have = file, begin, bytearray(end - begin), 0

    def receive(self) -> None:
        """Ask for the rest of the range."""
        import huggingface_hub

        file, first, last = self.file, self.begin + self.have, self.begin + len(self.data) - 1
        url = huggingface_hub.hf_hub_url(file.address.repository, file.name, revision=file.commit)
        with _streamed(url, {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}) as (response, pieces):
            self._check(response, first, last)
            for piece in pieces:
                if self.have + len(piece) > len(self.data):
                    raise InputError(f"{file}: the server sends more bytes than were asked for")
                self.data[self.have : self.have + len(piece)] = piece
                self.have += len(piece)
        if self.have < len(self.data):
            raise ConnectionError(f"the connection ended {len(self.data) - self.have} bytes too early")

    def _check(self, response: Any, first: int, last: int) -> None:
        import huggingface_hub.utils

        file, status = self.file, response.status_code
        if status == 416:
            raise InputError(f"{file} ends before byte {last}, which its header counts: the file is cut short")
        huggingface_hub.utils.hf_raise_for_status(response)
        if status != 206:
            raise InputError(
                f"{file}: the server sends whole files and no byte ranges (status {status}); download the model "
                f"(hf download {file.address.repository} --local-dir FOLDER) and pass the folder"
            )
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        sent = tuple(map(int, found.groups())) if found else ()
        if sent[:2] != (first, last) or file.size not in (None, sent[2]):
            if len(sent) == 3 and sent[0] == first and sent[1] < last and sent[1] + 1 == sent[2]:
                raise InputError(f"{file} ends at byte {sent[2]}, before byte {last}: the file is cut short")
            raise InputError(
                f"{file}: asked for bytes {first}-{last}, the server sends {response.headers.get('Content-Range')}"
            )
        file.size = sent[2]


@contextmanager
def _streamed(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Send a GET request and give its answer, whose body is read piece by piece. Redirects are followed."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    session: Any = get_session()
    headers = {**build_hf_headers(library_name=LIBRARY), **headers}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):  # a client of httpx
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response, response.iter_raw()  # with a size of pieces it would withhold what came before a break
    else:  # huggingface_hub before 1.0 has a session of requests
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            read = getattr(response.raw, "read1", response.raw.read)  # urllib3 1.x has no read1
            yield response, iter(partial(read, _PIECE), b"")


def asked(request: Callable[[], T], address: Address, what: str, received: Callable[[], int] = lambda: 0) -> T:
    """Send a request, again if a trouble may pass, and say in one line why it was refused.

    Parameters
    ----------
    request : callable
        Sends the request, and goes on where it stopped if it is called again.
    address : Address
        What the user asked for.
    what : str
        What a message calls it.
    received : callable, optional
        How many bytes have come so far.

    Raises
    ------
    InputError
        There is no answer, or one that refuses.
    """
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    tried, known = 0, 0
    while True:
        try:
            return request()
        except InputError:
            raise
        except Exception as error:  # of huggingface_hub, or of the HTTP library of its version
            status = getattr(getattr(error, "response", None), "status_code", None)
            if not (_is_io(error) or isinstance(error, (EntryNotFoundError, HFValidationError))):
                raise
            now = received()
            tried, known = (1, now) if now >= known + _GOT_ON else (tried + 1, known)
            if offline() or tried == TRIES or (status is not None and status not in _PASSING):
                raise _refused(error, status, address, what) from error
        time.sleep(_PAUSE * 2 ** (tried - 1))


def offline() -> bool:
    """Tell whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_io(error: Exception) -> bool:
    """Whether this is trouble with the connection. The exceptions of HTTP libraries are not always an OSError."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "h11", "urllib3"))


def _refused(error: Exception, status: int | None, address: Address, what: str) -> InputError:
    from huggingface_hub import constants, errors

    repository = address.repository
    page = f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{what}: the repository is gated; accept its conditions at {page} and run `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{what}: {repository} has no revision {address.revision!r} on the Hub")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return InputError(f"{what}: {repository} has no such file on the Hub")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return InputError(
            f"{what} is neither a local path nor a repository that the Hub gives; check the name, and run "
            "`hf auth login` if the repository is private"
        )
    if status == 401:
        return InputError(f"{what}: the Hub does not know your token (status 401); run `hf auth login`")
    if status == 403:
        return InputError(f"{what}: the Hub forbids to read it (status 403); log in with an account that may")
    if status is not None:
        return InputError(f"{what}: the Hub answers with status {status}; try again later")
    text = " ".join(str(error).split()) or "no answer"
    return InputError(
        f"{what} is no local path, and the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}: "
        f"{text[:200]}); check the network, or download the model and pass its folder"
    )

"""The stand-in for the Hub with byte ranges, a log of what it served, and faults on demand."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from fake_hub import FakeHub, Handler, fake_hub


class Served(NamedTuple):
    """What was asked for: of which file, which bytes, how many of them were sent, and with which token."""

    file: str
    begin: int
    end: int
    sent: int
    token: str | None


class RangeHandler(Handler):
    """Answers ranges. A fault is a function of this handler and of the range's bytes, used once for the next range.

    A range without an end is the rest of a download that broke. Each number in ``cuts`` breaks one download of a whole
    file, or of its rest, after so many bytes.
    """

    log: list[Served]
    faults: deque[Callable[[RangeHandler, bytes], None]]
    cuts: deque[int]

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if status != 200 or not isinstance(body, bytes) or self.command == "HEAD":
            super().answer(body, status, **headers)
            return
        self.size, self.begin = len(body), int(asked[1]) if asked else 0
        part = body[self.begin : int(asked[2]) + 1 if asked and asked[2] else None]
        if asked is None:
            self.send_whole(body, headers)
        elif not asked[2]:
            self.send(part, only=self.cuts.popleft() if self.cuts else None)
        elif self.faults:
            self.faults.popleft()(self, part)
        elif not part:
            super().answer(b"", 416)
        else:
            self.send(part)

    def send_whole(self, body: bytes, headers: dict[str, str]) -> None:
        """Send a file, or only its first bytes before the connection closes."""
        only = self.cuts.popleft() if self.cuts else None
        self.note(body, body[:only])
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[:only])
        self.close_connection = only is not None

    def note(self, part: bytes, sent: bytes) -> None:
        """Write into the log."""
        name, token = self.path.rpartition("/")[2], self.headers.get("Authorization")
        self.log.append(Served(name, self.begin, self.begin + len(part), len(sent), token))

    def send(self, part: bytes, *, only: int | None = None, begin: int | None = None, longer: bytes = b"") -> None:
        """Send a range, or ``only`` its first bytes before the connection closes."""
        begin = self.begin if begin is None else begin
        sent = part[:only]
        self.note(part, sent)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{self.size}")
        if longer:
            self.send_header("Connection", "close")  # the end of the connection ends the body
        else:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(sent + longer)
        self.close_connection = only is not None or bool(longer)


def whole(handler: RangeHandler, _part: bytes) -> None:
    """Ignore the range."""
    Handler.answer(handler, bytes(1000))


def refuse(status: int, **headers: str) -> Callable[[RangeHandler, bytes], None]:
    return lambda handler, _part: Handler.answer(handler, b"no", status, **headers)


@contextlib.contextmanager
def range_hub(folder: Path) -> Iterator[tuple[FakeHub, type[RangeHandler]]]:
    """A hub with an empty log and no faults."""
    handler = type("Fresh", (RangeHandler,), {"log": [], "faults": deque(), "cuts": deque()})
    with fake_hub(folder, handler) as hub:
        yield hub, handler


def sent(hub: FakeHub, *names: str) -> int:
    """How many bytes of these files were served."""
    return sum(each.sent for each in hub.handler.log if each.file in names)  # type: ignore[attr-defined]


def without_bytes_of_the_sizes(count: int, files: int) -> int:
    """One byte of each file was asked for to learn how large it is."""
    return count - files


class _Store(BaseHTTPRequestHandler):
    """Another host, to which large files are redirected."""

    protocol_version = "HTTP/1.1"
    headers_seen: list[dict[str, str]]
    data: bytes

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.headers_seen.append(dict(self.headers))
        begin, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = self.data[begin : end + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@contextlib.contextmanager
def other_host(data: bytes) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server of another name and port. Gives its address and the headers of its requests."""
    handler: type[_Store] = type("Store", (_Store,), {"headers_seen": [], "data": data})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/blob", handler.headers_seen
        finally:
            server.shutdown()
            thread.join()

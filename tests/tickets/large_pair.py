"""Write a large pair of bfloat16 tables, select from it, print time and private memory as JSON.

    python tests/tickets/large_pair.py FOLDER [--rows 128256] [--dimension 8192] [--changed few|all]

The pair is written block by block, the same bytes every time, and removed at the end. Private memory is what the
process holds beyond the page cache (RssAnon of /proc). The script prints its peak during the selection minus its value
before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import threading
import time
from pathlib import Path

import torch

from kslottery_fast import InputError
from kslottery_fast.tickets.stored import ks_select_checkpoints

NAME = "model.embed_tokens.weight"
WRITTEN = 1024  # rows at a time


def write_table(path: Path, rows: int, dimension: int, shifted: range) -> None:
    """A safetensors file of random bfloat16 rows; 2 is added to the ``shifted`` ones."""
    nbytes = rows * dimension * 2
    header = json.dumps({NAME: {"dtype": "BF16", "shape": [rows, dimension], "data_offsets": [0, nbytes]}}).encode()
    header += b" " * (-len(header) % 8)
    # Random numbers cost more than writing: every block holds the same ones, multiplied by its own factor.
    noise = torch.randn(min(rows, WRITTEN), dimension, generator=torch.Generator().manual_seed(0))
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, rows, WRITTEN):
            ids = torch.arange(start, min(rows, start + WRITTEN))
            block = noise[: len(ids)] * (1 + start / rows)
            block[[row in shifted for row in ids.tolist()]] += 2
            file.write(block.bfloat16().view(torch.uint8).numpy().data)


def private_bytes() -> int:
    """Anonymous memory of this process: heap and private copies, no mapped files."""
    return _status("RssAnon")


def resident_peak() -> int:
    """The most memory that this process ever had, including pages of mapped files."""
    return _status("VmHWM")


def _status(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split(f"{name}:")[1].split()[0])


class PeakMemory:
    """How much private_bytes rises while the block runs. It is read every two milliseconds."""

    def __enter__(self) -> PeakMemory:
        self._start = self._peak = private_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._peak = max(self._peak, private_bytes())

    @property
    def extra(self) -> int:
        """Bytes."""
        return max(self._peak, private_bytes()) - self._start


def main() -> None:
    """Write, select, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=128_256)
    parser.add_argument("--dimension", type=int, default=8_192)
    parser.add_argument("--changed", choices=("few", "all"), default="few", help="every 20th row, or all of them")
    options = parser.parse_args()
    if not options.folder.is_dir():
        raise InputError(f"{options.folder} is not a folder")
    shifted = range(0, options.rows, 20 if options.changed == "few" else 1)
    paths = [options.folder / f"{name}.safetensors" for name in ("before", "after")]
    try:
        for path, rows in zip(paths, (range(0), shifted), strict=True):
            # In a process of its own: what writing leaves in the heap is not there to hide a growth.
            arguments = (path, options.rows, options.dimension, rows)
            writer = multiprocessing.get_context("fork").Process(target=write_table, args=arguments)
            writer.start()
            writer.join()
        resident = resident_peak()
        with PeakMemory() as memory:
            started = time.perf_counter()
            tickets = ks_select_checkpoints(*paths)
            seconds = time.perf_counter() - started
        result = {
            "rows": options.rows,
            "dimension": options.dimension,
            "rows_shifted": len(shifted),
            "tickets": len(tickets),
            "file_bytes": paths[0].stat().st_size,
            "seconds": round(seconds, 3),
            "gigabytes_per_second": round(sum(path.stat().st_size for path in paths) / seconds / 1e9, 2),
            "private_bytes": memory.extra,
            "resident_bytes": resident_peak() - resident,
        }
        print(json.dumps(result))
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

"""What ptxas reports about the kernels: registers, spills, shared memory. It is kept next to each object file.

python resources.py nvcc ... -o kernels.o    run a compiler with -Xptxas=-v and keep what ptxas says (CMake does this)
python resources.py build/cmake-*            the report of a build, one line for each kernel and architecture
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".ptxas"


class Kernel(NamedTuple):
    """One kernel on one architecture; sizes in bytes, registers for each thread, shared memory for each block."""

    name: str
    architecture: str
    registers: int
    spilled: int
    shared: int


def compile_and_keep(command: list[str]) -> int:
    """Run the compiler. The report of ptxas goes to a file next to the object, everything else to stderr."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    lines = done.stderr.splitlines(keepends=True)
    by_ptxas = [line.startswith("ptxas info") or " bytes stack frame, " in line for line in lines]
    sys.stderr.writelines(line for line, kept in zip(lines, by_ptxas, strict=True) if not kept)
    if "-o" in command and done.returncode == 0:
        report = Path(command[command.index("-o") + 1] + SUFFIX)
        report.write_text("".join(line for line, kept in zip(lines, by_ptxas, strict=True) if kept))
    return done.returncode


def kernels(report: str) -> Iterator[Kernel]:
    """The kernels of a report."""
    for part in re.split(r"ptxas info\s+: Compiling entry function ", report)[1:]:
        name, architecture = re.match(r"'(\w+)' for '(\w+)'", part).groups()  # type: ignore[union-attr]
        spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill", part))
        registers = int(re.search(r"Used (\d+) registers", part)[1])  # type: ignore[index]
        shared = re.search(r"(\d+) bytes smem", part)
        yield Kernel(name, architecture, registers, spilled, int(shared[1]) if shared else 0)


def report_of(build: Path) -> list[Kernel]:
    """All kernels of a build folder."""
    return [kernel for path in sorted(build.rglob(f"*{SUFFIX}")) for kernel in kernels(path.read_text())]


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    if len(arguments) != 1:
        return compile_and_keep(arguments)
    for kernel in report_of(Path(arguments[0])):
        print(
            f"{kernel.architecture:8} {kernel.registers:4} registers {kernel.spilled:5} bytes spilled "
            f"{kernel.shared:6} bytes shared  {kernel.name}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

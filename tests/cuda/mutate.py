"""Plant faults of one token each in the CUDA kernels, and check that the tests of this folder catch every one.

    python tests/cuda/mutate.py            all of them, ten minutes or so
    python tests/cuda/mutate.py 3 7        some, by their numbers

Works on a copy of the sources in build/mutants. Prints which test caught each fault; exit code 1 if one escaped, or if
the copy without a fault does not pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import shim_module

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "mutants"
ADAMW_TESTS = ["test_cuda_row_adamw.py", "test_cuda_row_adamw_cluster.py"]
TESTS = {
    "row_adamw.cu": ADAMW_TESTS,
    "row_adamw.cuh": ADAMW_TESTS,
    "row_embedding.cu": ["test_cuda_row_embedding.py"],
    "device.cuh": ["test_cuda_row_adamw.py", "test_cuda_row_embedding.py"],
}
KS_TESTS = ["test_ks_cuda.py"]  # of all other files


class Fault(NamedTuple):
    """A fault in a file of csrc/cuda: in the only place that reads `line`, `old` becomes `new`."""

    file: str
    line: str
    old: str
    new: str

    def fits(self, text: str) -> bool:
        """Whether the line is in the text of the file once, and the token once in the line."""
        return text.count(self.line) == 1 and self.line.count(self.old) == 1


FAULTS = (
    Fault("ks_counts.cuh", "at += of_part[j] <= of_part[i];", "<= of", "< of"),
    Fault("ks_block.cuh", "return max(at + count.x, count.y - at);", "count.y - at", "count.y + at"),
    Fault("ks_block.cuh", "bounds.lower = max(bounds.lower, abs(at + count.x - count.y));", "abs(at +", "abs(at -"),
    Fault("ks_block.cuh", "~0u << min(max(from - first_own(), 0), kOwn);", "from -", "from + 1 -"),
    Fault("ks_counts.cuh", "return atomicAdd(&slots[bucket], 0x10000u) >> 16;", ">> 16", ">> 15"),
    Fault("ks_block.cuh", "shared.small.mark(taken);", "(taken)", "(done | taken)"),
    Fault("ks_counts.cuh", "if ((taken[bucket / kOwn] >> (bucket % kOwn) & 1) == 0) return;", "% kOwn", "% kWarp"),
    Fault("ks_counts.cuh", "if (vector < nth_vector(0)) sums.last += sum;", "< nth", "<= nth"),
    Fault("ks_counts.cuh", "if (vector == 0) at = start;", "== 0", "== 1"),
    Fault("ks_counts.cuh", "const auto width = static_cast<unsigned>(last - first);", "- first", "- first - 1"),
    Fault("ks_counts.cuh", "lane < warp ? storage.sums[lane] : 0", "< warp", "<= warp"),
    Fault("ks_engine.cuh", "if (block.me() == 0) block.shared.flags = flags;", "= flags", "= 0"),
    Fault("ks_engine.cuh", "if (block.me() == 0) shared.special = special;", "= special", "= false"),
    Fault("ks_maps.cuh", "return kLimits + sizes - 2 * negative;", "2 * ", ""),
    Fault("ks_sort.cuh", "static_cast<uint32_t>(2 * row + !in_x);", "!in_x", "in_x"),
    Fault("ks_sort.cuh", "while ((2 * rows - 1) >> bits) ++bits;", "2 * rows", "rows"),
    Fault("ks_sort.cuh", "batch.best[s * int64_t{gridDim.x} + blockIdx.x] = side;", "[s *", "[0 *"),
    Fault("ks_input.cuh", "if (begin(v) < n) vector = __ldcs(vectors + v * kThreads);", "< n", "<= n"),
    Fault("ks_input.cuh", "nan |= (bits & kMagnitude<T>) > BitsOf<T>::kInfinity;", "> BitsOf", ">= BitsOf"),
    Fault("ks_maps.cuh", "return key >= low && key <= high;", ">= low", "> low"),
    Fault("ks_maps.cuh", "while ((high - low) >> shift >= static_cast<key_t<T>>(kBuckets)) ++shift;", ">= st", "> st"),
    Fault("ks_block.cuh", "if (key < low || key > high) return;", "key > high", "key >= high"),
    Fault("ks_block.cuh", "frame = {low, high, large.y, 0};", "large.y", "large.x"),
    Fault("ks_engine.cuh", "block.best > problem.floor ? block.best : 0", "> problem", ">= problem"),
    Fault("ks_engine.cuh", "problem.decided[r] = !nan && block.best >= problem.stop;", ">= problem", "> problem"),
    Fault("ks_sort.cuh", "if (keys[middle] <= key) {", "<= key", "< key"),
    Fault("ks_sort.cuh", "return at < other.at;", "< other", "> other"),
    Fault("row_adamw.cuh", "exists = element < u.k * u.table.cols;", "< u.k", "<= u.k"),
    Fault("row_adamw.cuh", "const int64_t step = u.step ? static_cast<int64_t>(*u.step) + 1 : 0;", "+ 1", "+ 2"),
    Fault("row_adamw.cuh", "grad_row = u.whole_grad ? row : i;", "row : i", "i : row"),
    Fault("row_adamw.cu", "return blockIdx.x >= turn ?", ">= turn", "> turn"),
    Fault("row_adamw.cu", "if (step.last) control.state[kNonfinite] = 0;", "(step.last)", "(!step.last)"),
    Fault("row_adamw.cuh", "__syncthreads();  // the next table's take their place", "__syncthreads();", ""),
    Fault("row_adamw.cu", "cluster_barrier();  // what the others", "cluster_barrier();", ""),
    Fault("row_adamw.cu", "cluster_barrier();\n        if (step", "cluster_barrier();", ""),
    Fault("row_adamw.cu", "blockIdx.x == 0 && threadIdx.x == 0) move_on", "blockIdx.x == 0 && ", ""),
    Fault("row_adamw.cu", "while (blocks < most && blocks < tiles) blocks *= 2;", "*= 2", "*= 16"),
    Fault("row_embedding.cu", "if (slots[j] >= 0) {", ">= 0", "> 0"),
    Fault("row_embedding.cu", "if (piece < pieces) static_cast<Pack", "< pieces", "<= pieces"),
    Fault("row_embedding.cu", "if (keys[middle] < key) {", "< key", "<= key"),
    Fault("row_embedding.cu", "while (k >> bits) ++bits;", "k >> bits", "k >> bits > 1"),
    Fault("row_embedding.cu", "if (i >= n) return;", ">= n", "> n"),
    Fault("row_embedding.cu", "if (col >= grad_out.cols) return;", ">= grad", "> grad"),
    Fault("device.cuh", "m.cols % count == 0", "== 0", "!= 1"),
    Fault("device.cuh", "if (((a | b) >> 32) == 0)", "== 0", "!= 0"),
)


def copy_sources() -> None:
    """Copy the sources of the shim. Unchanged files keep their times, so that little is built again."""
    for folder in ("csrc", "tests/cuda"):
        for source in (ROOT / folder).rglob("*"):
            target = COPY / source.relative_to(ROOT)
            if source.is_file() and (not target.exists() or target.read_bytes() != source.read_bytes()):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def failing_test(file: str) -> str | None:
    """Build the copy and run the tests of a file on it. Return the first test that fails, or None."""
    environment = {**os.environ, "KSL_SHIM": str(shim_module.build(COPY))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [f"tests/cuda/{name}" for name in TESTS.get(file, KS_TESTS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S+::(.+?)(?: - |$)", done.stdout, re.MULTILINE)
    return failed[1] if failed else f"exit code {done.returncode}"


def main(numbers: list[int]) -> int:
    """Run the command line. Return the exit code."""
    copy_sources()
    for file in [*TESTS, "ks_rows.cu"] if not numbers else []:
        if broken := failing_test(file):
            print(f"without a fault: {broken} fails")
            return 1
    escaped = 0
    for number, fault in enumerate(FAULTS, start=1):
        if numbers and number not in numbers:
            continue
        path = COPY / "csrc" / "cuda" / fault.file
        text = path.read_text()
        if not fault.fits(text):
            raise SystemExit(f"fault {number}: {fault.file} does not read {fault.line!r} exactly once")
        path.write_text(text.replace(fault.line, fault.line.replace(fault.old, fault.new)))
        try:
            caught = failing_test(fault.file)
        finally:
            path.write_text(text)
        escaped += caught is None
        print(f"{number:2} {fault.file}: {fault.old} -> {fault.new}: {caught or 'NOT CAUGHT'}", flush=True)
    print("every fault was caught" if not escaped else f"{escaped} faults were not caught")
    return int(escaped > 0)


if __name__ == "__main__":
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))

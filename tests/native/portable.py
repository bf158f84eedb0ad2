"""The native core on other systems, compilers and CPUs, bit for bit as in this process: what `make portable` does.

python tests/native/portable.py [TARGET ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops"))  # ks_cases

from native_calls import Call, Result, call_here, differences
from native_cases import all_calls
from native_targets import TARGETS, MissingToolError, build, run

SHOWN = 10  # differences of a run


def check(name: str, calls: list[Call], expected: list[Result], folder: Path) -> bool:
    """Build and run a target, and print what came of it. Return whether all results have the bits that are expected."""
    target, good = TARGETS[name], True
    print(f"{name}: {target.what}", flush=True)
    driver = build(name)
    for isa in target.isas:
        begin = time.monotonic()
        done = run(name, driver, isa, calls, folder)
        if done is None:
            print(f"  {isa}: this CPU does not have it")
            continue
        found = [
            f"call {number}, {call.name}: {difference}"
            for number, (call, one, other) in enumerate(zip(calls, expected, done[1], strict=True))
            for difference in differences(call, one, other)
        ]
        if done[0] != (isa or target.chosen):
            found.append(f"the instruction set is {done[0]}; expected {isa or target.chosen}")
        print(
            f"  {done[0]}: {len(calls)} calls, {len(found)} differences, {time.monotonic() - begin:.0f} s", flush=True
        )
        for line in found[:SHOWN]:
            print(f"    {line}")
        good = good and not found
    return good


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all without it")
    names = parser.parse_args(arguments).targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]!r}; expected some of {', '.join(TARGETS)}")
    try:
        for name in names:  # before anything is built
            target = TARGETS[name]
            for tool in (target.compiler or TARGETS[target.built_as].compiler, target.runner):
                if tool:
                    tool.command()
    except MissingToolError as error:
        print(f"error: target {name}: {error}", file=sys.stderr)
        return 2
    calls = all_calls()
    expected = [call_here(call) for call in calls]
    with tempfile.TemporaryDirectory() as folder:
        results = [check(name, calls, expected, Path(folder)) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Ways to damage a file: bytes that flip, parts that are missing, repeated or huge, and values that cannot be.

A file whose format is known (JSON, safetensors, zip) is also taken apart, damaged inside, and put together again, so
that what is wrong lies deeper than the first check. Everything follows from the random generator that is passed.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

ODD_NUMBERS = (0, 1, -1, 7, 2**31, 2**32 - 1, 2**40, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)
ODD_FLOATS = (0.0, -0.0, 0.5, -1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
ODD_TEXTS = (
    "", "x", "\x00", "\ud800", "\u202e", "\ufeff", "naïve", "F32", "BF16", "../../x", "/", "nan", "1e999",
    "model.safetensors", "\N{PILE OF POO}" * 3, "a" * 3000, "[" * 3000, "%s{}", "\n\r\t\x1b[31m",
)  # fmt: skip
_HUGE = tuple(
    struct.pack(code, value)
    for code, values in (
        ("<H", (0, 1, 0xFFFF, 0x7FFF)),
        ("<I", (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 1 << 20)),
        ("<Q", (0, 1, (1 << 64) - 1, 1 << 63, 1 << 62, 1 << 40, 1 << 32)),
        ("<d", (float("nan"), float("inf"), 1e308)),
    )
    for value in values
)


def mutated(name: str, content: bytes, rng: random.Random) -> bytes:
    """Return a damaged copy of a file."""
    if rng.random() < 0.6:
        for suffix, mutate in INSIDE.items():
            if name.endswith(suffix):
                return mutate(content, rng)
    return mutated_bytes(content, rng)


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Damage the bytes, without a thought for what they mean."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        content = rng.choice(BYTES)(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    """A random place. Headers are at the beginning and at the end of files, so these are hit more often."""
    size = len(content)
    kind = rng.random()
    if kind < 0.3:
        return rng.randrange(min(size, 64) + 1)
    if kind < 0.4:
        return size - rng.randrange(min(size, 64) + 1)
    return rng.randrange(size + 1)


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    begin = _place(content, rng)
    return begin, min(len(content), begin + rng.choice((1, 2, 4, 8, 16, 100, 1000)))


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if at := min(_place(content, rng), len(changed) - 1) + 1:
            changed[at - 1] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    at, new = _place(content, rng), rng.choice(_HUGE)
    return content[:at] + new + content[at + len(new) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 3, 20))) + content[at:]


def _remove(content: bytes, rng: random.Random) -> bytes:
    begin, end = _span(content, rng)
    return content[:begin] + content[end:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    begin, end = _span(content, rng)
    return content[:end] + content[begin:end] * rng.choice((1, 1, 2, 50)) + content[end:]


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _splice(content: bytes, rng: random.Random) -> bytes:
    begin, end = _span(content, rng)
    at = _place(content, rng)
    return content[:at] + content[begin:end] + content[at + end - begin :]


def _text(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    new = rng.choice((*ODD_TEXTS, "NaN", "Infinity", "-1", "1e400", "null", '"', "\\", ",", "\t", "\n", "{", "}"))
    return content[:at] + new.encode("utf-8", "surrogatepass") + content[at:]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _overwrite, _insert, _remove, _repeat, _truncate, _splice, _text
)  # fmt: skip


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """Damage values of a JSON text, and write it again."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # a text inside that was damaged before
        return mutated_bytes(content, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = mutated_value(value, rng)
    return _json_bytes(value, rng)


def _json_bytes(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value, allow_nan=True)
    if isinstance(value, dict) and value and rng.random() < 0.05:  # a key twice
        key = rng.choice(list(value))
        text = "{" + json.dumps(key) + ":" + json.dumps(odd_value(rng)) + "," + text[1:]
    if rng.random() < 0.02:
        text = text.replace("0", "9" * 5000, 1)
    if rng.random() < 0.02:
        text = text.replace("[", "[" * 100_000, 1)
    return text.encode()


def mutated_lines(content: bytes, rng: random.Random) -> bytes:
    """Damage one line of a file with a JSON text in each."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = mutated_json(lines[at], rng)
    return b"\n".join(lines)


def mutated_value(value: Any, rng: random.Random) -> Any:
    """Return a copy of parsed JSON in which one value is something else."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        return _inside(value, rng)
    if isinstance(value, str) and value[:1] in ("{", "[") and rng.random() < 0.8:
        return mutated_json(value.encode(), rng).decode(errors="replace")
    kind = rng.random()
    if kind < 0.15 and isinstance(value, (int, float)) and not isinstance(value, bool):
        return value + rng.choice((-1, 1, 0.5))
    if kind < 0.3 and isinstance(value, str):
        return mutated_bytes(value.encode("utf-8", "replace"), rng).decode("utf-8", "replace")
    if kind < 0.4:
        return [value]
    if kind < 0.45:
        return {"value": value}
    if kind < 0.5 and isinstance(value, list):
        return value * rng.choice((0, 2, 100))
    return odd_value(rng)


def _inside(value: Any, rng: random.Random) -> Any:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, changed = rng.choice(keys), value.copy()
    kind = rng.random()
    if kind < 0.1:
        del changed[key]
    elif kind < 0.2:
        changed[key] = changed[rng.choice(keys)]
    elif kind < 0.25 and isinstance(changed, dict):
        changed[rng.choice(ODD_TEXTS)] = changed[key]
    elif kind < 0.25:
        changed.insert(key, odd_value(rng))
    else:
        changed[key] = mutated_value(changed[key], rng)
    return changed


def odd_value(rng: random.Random) -> Any:
    """A value that JSON can hold and few expect."""
    some: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": {}}, [1, "a"])
    return rng.choice((rng.choice(some), rng.choice(ODD_NUMBERS), rng.choice(ODD_FLOATS), rng.choice(ODD_TEXTS)))


def mutated_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Damage the header of a safetensors file. Its length is right, in most cases."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    header = mutated_json(header, rng)
    if rng.random() < 0.1:
        data = mutated_bytes(data, rng)
    length = rng.choice(ODD_NUMBERS) % (1 << 64) if rng.random() < 0.1 else len(header)
    return length.to_bytes(8, "little") + header + data


def mutated_zip(content: bytes, rng: random.Random) -> bytes:
    """Damage one file of a zip archive, whose checksum is right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = [(info, archive.read(info)) for info in archive.infolist()]
    pickles = [at for at, (info, _) in enumerate(files) if info.filename.endswith(".pkl")]
    at = rng.choice(pickles) if pickles and rng.random() < 0.7 else rng.randrange(len(files))
    if rng.random() < 0.05:
        del files[at]
    else:
        files[at] = files[at][0], mutated_bytes(files[at][1], rng)
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
        for info, data in files:
            archive.writestr(info.filename, data)
    return new.getvalue()


INSIDE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutated_json,
    ".jsonl": mutated_lines,
    ".safetensors": mutated_safetensors,
    "-zip.bin": mutated_zip,
}
"""What damages a file from inside, by how its name ends."""

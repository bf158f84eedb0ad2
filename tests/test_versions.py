"""docs/versions.md has the bounds and pins of today, and `make oldest` asks for the bounds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import versions
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(not (ROOT / "docs").exists(), reason="not run from a source tree"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="constraints.txt has other pins for Python 3.10"),
]


def recorded() -> dict[str, list[str]]:
    """The rows of the table of docs/versions.md: oldest, pinned and newest version by package."""
    text = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    rows = text[text.index("| package | `make oldest`") : text.index("## Outcome")].splitlines()[2:]
    return {name: found for name, *found in (re.findall(r"[^|\s]+", row) for row in rows if row.startswith("|"))}


def test_the_page_has_every_bound_and_every_pin():
    table, bounds, pins = recorded(), versions.lower_bounds(), versions.pins()
    assert sorted(table) == sorted([*bounds, *versions.NEWEST_ALONE])
    for name, (oldest, pinned, newest) in table.items():
        assert pinned == pins.get(canonicalize_name(name), "–"), name
        pinned = newest if pinned == "–" else pinned  # argcomplete, which no test needs
        assert Version(newest) >= Version(pinned), name
        if name not in ("torch", *versions.NEWEST_ALONE):
            assert Version(bounds[name]) <= Version(oldest) <= Version(pinned), name
            assert f"{oldest}.".startswith(f"{bounds[name]}."), name


def test_the_oldest_versions_are_asked_for_as_the_bounds_say_and_torch_is_left_as_it_is():
    asked = versions.wanted("oldest")
    assert f"scipy>={versions.lower_bounds()['scipy']},=={versions.lower_bounds()['scipy']}.*" in asked
    assert f"pytest=={versions.pins()['pytest']}" in asked
    assert not [each for each in (*asked, *versions.wanted("newest")) if re.match(r"torch\b", each)]
    assert set(versions.NEWEST_ALONE) <= set(versions.wanted("newest"))


def test_a_word_that_is_neither_is_refused_before_anything_is_installed(monkeypatch):
    monkeypatch.setattr(versions, "prepare", lambda _: pytest.fail("something would be installed"))
    with pytest.raises(SystemExit, match=r"usage: python tests/versions.py oldest\|newest"):
        versions.run(["older"])

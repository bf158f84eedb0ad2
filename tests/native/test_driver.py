"""The native core as a program without Python gives what it gives in Python, with every instruction set of this CPU."""

from __future__ import annotations

from pathlib import Path

import native_targets
import portable
import pytest
import torch
from native_calls import Call, Matrix, call_here, differences
from native_cases import all_calls


@pytest.fixture(scope="module")
def here():
    """The calls, and what they give in this process."""
    calls = all_calls()
    return calls, [call_here(call) for call in calls]


@pytest.fixture(scope="module")
def driver():
    return native_targets.build_beside_module()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the calls are written, once."""
    return tmp_path_factory.mktemp("calls")


def test_the_calls_reach_every_function_and_some_are_refused(here):
    calls, results = here
    source = (Path(__file__).parent / "driver.cpp").read_text()
    assert all(f'{{"{name}", caller(' in source for name in {call.name for call in calls})
    assert source.count(", caller(") == len({call.name for call in calls})
    assert sum(bool(result.refusal) for result in results) == 5


@pytest.mark.parametrize("isa", native_targets.ISAS)
def test_the_program_gives_the_bits_of_the_module(here, driver, folder, isa):
    calls, expected = here
    done = native_targets.run("host", driver, isa, calls, folder)
    if done is None:
        pytest.skip(f"this CPU has no {isa}")
    assert done[0] == isa
    found = [differences(*of_call) for of_call in zip(calls, expected, done[1], strict=True)]
    assert not any(found), next(filter(None, found))


def test_a_difference_of_one_bit_is_found_and_signs_of_nan_are_not_compared():
    matrix = torch.tensor([[1.0, torch.nan]])
    call = Call("all_finite", (Matrix(matrix), 1))
    result = call_here(call)
    assert result.returned == [0]
    content = bytearray(result.buffers[0])
    content[7] ^= 0x80
    assert not differences(call, result, result._replace(buffers=[bytes(content)]))
    content[0] ^= 1
    (found,) = differences(call, result, result._replace(buffers=[bytes(content)]))
    assert found.startswith("buffer 0: 1 differ, first [0]")
    assert differences(call, result, result._replace(returned=[1])) == ["([0], '') and ([1], '')"]


def test_a_missing_tool_is_named_in_one_line_before_anything_is_built(monkeypatch, capsys):
    monkeypatch.setattr(native_targets, "search_path", lambda: "/nowhere")
    monkeypatch.setattr(portable, "build", None)
    assert portable.main(["aarch64"]) == 2
    assert capsys.readouterr().err == (
        "error: target aarch64: aarch64-linux-gnu-g++ not found; install it "
        "(Debian, Ubuntu: apt install g++-aarch64-linux-gnu)\n"
    )


def test_an_unknown_target_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        portable.main(["amiga"])
    assert exit_.value.code == 2
    assert "unknown target 'amiga'; expected some of host, " in capsys.readouterr().err

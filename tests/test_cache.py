"""The cache: where it is, and temporary folders in it that are removed afterwards."""

from __future__ import annotations

import errno

import pytest

from kslottery_fast.base import extras
from kslottery_fast.base.cache import CACHE_VARIABLE, cache_directory, temporary_folder
from kslottery_fast.base.errors import InputError


def test_the_cache_is_where_the_environment_says_else_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_directory().name == "kslottery-fast"


def test_without_the_extra_the_cache_has_to_be_named(monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"unless KSLOTTERY_CACHE names its folder, needs platformdirs; pip install"):
        cache_directory()


def test_a_disk_that_fills_up_is_one_line_and_nothing_stays(tmp_path):
    with pytest.raises(InputError, match=r"^disk full"), temporary_folder(tmp_path, 1):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="Input/output"), temporary_folder(tmp_path, 1):
        raise OSError(errno.EIO, "Input/output error")

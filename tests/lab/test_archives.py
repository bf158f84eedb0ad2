"""Zip archives: only what is wanted comes out, and nothing leads out of a folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from kslottery_fast.base.errors import InputError
from kslottery_fast.lab.data.archives import extract_member, file_sha256, read_members


def make_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return path


def test_only_wanted_members_are_read_in_order_of_name(tmp_path):
    archive = make_zip(tmp_path / "a.zip", "b/two.po", "a/one.po", "a/code.py")
    assert list(read_members(archive, lambda name: name.endswith(".po"))) == [
        ("a/one.po", b"content of a/one.po"),
        ("b/two.po", b"content of b/two.po"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_one_member_is_extracted_under_its_own_name_and_nothing_else(tmp_path):
    archive = make_zip(tmp_path / "a.zip", "deep/down/model.gguf", "deep/other")
    (tmp_path / "out").mkdir()
    path = extract_member(archive, "deep/down/model.gguf", tmp_path / "out")
    assert path == tmp_path / "out" / "model.gguf"
    assert path.read_text() == "content of deep/down/model.gguf"
    assert list((tmp_path / "out").iterdir()) == [path]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\..\\evil"])
def test_an_archive_with_a_name_that_leads_out_is_refused_whole(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", "good.po", name)
    with pytest.raises(InputError, match=r"a.zip holds the unsafe name '.*evil'; the archive is not used"):
        list(read_members(archive, lambda name: name == "good.po"))
    with pytest.raises(InputError, match="unsafe name"):
        extract_member(archive, name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_missing_member_and_a_broken_archive_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a.zip has no member model.gguf"):
        extract_member(make_zip(tmp_path / "a.zip", "other"), "model.gguf", tmp_path)
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"b.zip is not a readable zip archive \(File is not a zip file\)"):
        list(read_members(tmp_path / "b.zip", lambda _name: True))


def test_the_sha256_of_a_file_longer_than_a_block(tmp_path):
    content = bytes(range(256)) * 8192
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()

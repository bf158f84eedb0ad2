"""Files of the Hub that are downloaded whole: what is said beforehand, what they cost, and downloads that fail."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from range_hub import sent, without_bytes_of_the_sizes
from safetensors.torch import save_file
from stored_tables import NAME, D, V, saved

from kslottery_fast import InputError, ks_select
from kslottery_fast.checkpoints.hub_address import hub_address
from kslottery_fast.checkpoints.hub_client import TRIES
from kslottery_fast.checkpoints.hub_repository import fetched_folder, find_repository
from kslottery_fast.checkpoints.opening import open_checkpoint
from kslottery_fast.tickets.scan import scan_checkpoints
from kslottery_fast.tickets.stored import ks_select_checkpoints

BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


@pytest.mark.parametrize("path", ["org/after", f"hf://org/after/{BIN}", "org/after@v1"])
def test_a_torch_file_is_downloaded_once_and_a_warning_says_its_size_before(hub, tables, path):
    content = saved({NAME: tables[1], "big": torch.zeros(5000, 100)})
    for branch in ("main", "v1"):
        hub.commit("org/after", branch, {BIN: content, "optimizer.pt": b"x"})
    said = rf"{BIN} \(1 MiB\) is downloaded whole, into the cache of huggingface_hub: a PyTorch file cannot be read by"
    with pytest.warns(RuntimeWarning, match=said):
        assert ks_select_checkpoints("org/before", path) == ks_select(*tables)
    assert without_bytes_of_the_sizes(sent(hub, BIN), 1) == len(content)
    assert ks_select_checkpoints("org/before", path) == ks_select(*tables)
    assert without_bytes_of_the_sizes(sent(hub, BIN), 1) == len(content)


def test_of_sharded_torch_files_only_the_shard_of_the_table_is_downloaded(hub, tables):
    index = {"weight_map": {NAME: "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    shards = {index["weight_map"][NAME]: saved({NAME: tables[1]}), index["weight_map"]["b"]: saved({"b": tables[0]})}
    hub.commit("org/after", "main", {INDEX: json.dumps(index).encode(), **shards})
    with pytest.warns(RuntimeWarning, match=r"00001-of-00002.bin .* is downloaded whole"):
        assert ks_select_checkpoints("org/before", "org/after") == ks_select(*tables)
    assert {each.file for each in hub.handler.log if each.file.endswith(".bin")} == {"pytorch_model-00001-of-00002.bin"}


SHARDS = [f"pytorch_model-0000{number}-of-00003.bin" for number in (1, 2, 3)]


@pytest.fixture
def sharded(hub, tables):
    """Two repositories of three PyTorch shards each, and the tables that they hold."""
    for name, table in zip(("org/first", "org/second"), tables, strict=True):
        tensors = {NAME: table, "h.0.w.weight": 2 * table, "h.1.w.weight": 3 * table}
        files = {shard: saved({key: each}) for shard, (key, each) in zip(SHARDS, tensors.items(), strict=True)}
        index = {"weight_map": dict(zip(tensors, SHARDS, strict=True))}
        hub.commit(name, "main", {INDEX: json.dumps(index).encode(), **files})
    return tables


def downloads(caught) -> list[str]:
    """The warnings about files that are downloaded whole."""
    return [str(each.message) for each in caught if "downloaded whole" in str(each.message)]


def test_a_scan_says_before_the_first_download_how_large_all_shards_are_together(hub, sharded):
    size = sum(map(len, hub.files("org/second").values()))
    large = saved({NAME: sharded[1], "pad": torch.zeros(3 << 18)})  # 3 MiB
    hub.commit("org/second", "main", hub.files("org/second") | {SHARDS[0]: large})
    with pytest.warns(RuntimeWarning) as caught:
        scan = scan_checkpoints("org/first", "org/second")
    assert [shift.changed_rows > 0 for shift in scan.tensors] == [True] * 3
    listed = f"{SHARDS[0]} and 2 more files"
    why = "are downloaded whole, into the cache of huggingface_hub: a PyTorch file cannot be read by byte ranges"
    assert downloads(caught) == [
        f"org/first: {listed} (less than 1 MiB) {why}",
        f"org/second: {listed} ({(len(large) + size) >> 20} MiB) {why}",
    ]
    served = [each for each in hub.handler.log if each.file in SHARDS]
    sizes = [each.end - each.begin == 1 for each in served]
    assert sizes == ([True] * 3 + [False] * 3) * 2  # all sizes of a model are known before its first download


def test_shards_that_are_in_the_cache_are_left_out_of_what_is_said(hub, sharded):
    huggingface_hub.hf_hub_download("org/second", SHARDS[0])
    with pytest.warns(RuntimeWarning) as caught:
        scan_checkpoints("org/first", "org/second")
    assert downloads(caught)[1].startswith(f"org/second: {SHARDS[1]} and {SHARDS[2]} (less than 1 MiB) are downloaded")


def test_shards_without_an_index_are_downloaded_after_one_line(hub, sharded):
    files = hub.files("org/second")
    hub.commit("org/second", "main", {shard: files[shard] for shard in SHARDS})
    with pytest.warns(RuntimeWarning) as caught:
        assert ks_select_checkpoints("org/before", "org/second") == ks_select(*sharded)
    said = [str(each.message) for each in caught]
    assert len(said) == 2
    assert said[0].startswith(f"org/second: {SHARDS[0]} and 2 more files (less than 1 MiB) are downloaded whole")
    assert said[1] == "org/second has no index: its 3 weight files are read as one checkpoint"
    assert set(open_checkpoint("org/second")) == {NAME, "h.0.w.weight", "h.1.w.weight"}


def test_nothing_is_downloaded_whole_before_both_checkpoints_were_found(hub, sharded):
    with pytest.raises(InputError, match="org/none is neither a local path nor a repository"):
        scan_checkpoints("org/first", "org/none")
    assert not sent(hub, *SHARDS)


@pytest.fixture
def adapter(tmp_path) -> Path:
    """An adapter over two matrices that lie in two shards."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["w"]}
    ends = {"lora_A": torch.ones(2, D), "lora_B": torch.ones(V, 2)}
    tensors = {f"base_model.model.h.{n}.w.{end}.weight": each.clone() for end, each in ends.items() for n in (0, 1)}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    return tmp_path / "adapter"


@pytest.mark.usefixtures("sharded")
def test_for_a_scan_of_an_adapter_all_shards_of_the_base_are_downloaded_after_one_line(adapter):
    with pytest.warns(RuntimeWarning) as caught:
        scan = scan_checkpoints("org/first", adapter)
    assert [each.partition(" (")[0] for each in downloads(caught)] == [f"org/first: {SHARDS[0]} and 2 more files"]
    assert {shift.name for shift in scan.tensors if shift.changed_rows} == {"h.0.w.weight", "h.1.w.weight"}


@pytest.mark.usefixtures("sharded")
def test_the_shards_that_an_adapter_changes_are_downloaded_after_one_line(adapter):
    with pytest.warns(RuntimeWarning) as caught:
        tickets = ks_select_checkpoints("org/first", adapter, tensor="h.0.w.weight")
    assert len(tickets) > V / 2
    assert [each.partition(" (")[0] for each in downloads(caught)] == [f"org/first: {SHARDS[1]} and {SHARDS[2]}"]


def test_shards_whose_tensors_have_other_names_are_downloaded_together(hub, sharded, tables):
    names = dict(zip(("model.embed.weight", "model.h.0.w.weight", "model.h.1.w.weight"), SHARDS, strict=True))
    files = {shard: saved({name: tables[1]}) for name, shard in names.items()}
    hub.commit("org/second", "main", {INDEX: json.dumps({"weight_map": names}).encode(), **files})
    with pytest.warns(RuntimeWarning) as caught:
        ks_select_checkpoints("org/first", "org/second", tensor="h.1.w.weight")
    said = downloads(caught)
    assert [each.partition(" (")[0] for each in said] == [
        f"org/first: {SHARDS[2]}",
        f"org/first: {SHARDS[0]} and {SHARDS[1]}",
        f"org/second: {SHARDS[0]} and 2 more files",
    ]


def test_a_download_that_breaks_goes_on_where_it_stopped(hub, tables, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)  # what is written at a time
    content = saved({NAME: tables[1]})
    hub.commit("org/after", "main", {BIN: content})
    hub.handler.cuts.extend([1000, 500])
    with pytest.warns(RuntimeWarning, match="downloaded whole"):
        assert ks_select_checkpoints("org/before", "org/after") == ks_select(*tables)
    assert not hub.handler.cuts
    assert without_bytes_of_the_sizes(sent(hub, BIN), 1) == len(content)


def test_a_cache_that_takes_no_more_is_named_at_once(hub, monkeypatch):
    hub.commit("org/after", "main", {BIN: saved({NAME: torch.zeros(9, 4)})})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    message = r"cannot be written to the cache of huggingface_hub, .*hub_cache \(No space left on device\); free space"
    with pytest.warns(RuntimeWarning, match="downloaded whole"), pytest.raises(InputError, match=message):
        ks_select_checkpoints("org/before", "org/after")


def of_xet(number: int) -> RuntimeError:
    """What hf_xet 1.x raises, whatever the reason is."""
    return RuntimeError(f"Task error: File reconstruction error: IO Error: some text (os error {number})")


@pytest.fixture(params=["whole file", "small files"])
def download(request, hub, monkeypatch):
    """Download into the cache through a huggingface_hub that raises an error. Its ``calls`` are counted."""
    calls = []

    def run(error: Exception) -> None:
        def failing(*_, **__):
            calls.append(error)
            raise error

        address = hub_address("org/before")
        for each in ("hf_hub_download", "snapshot_download"):
            monkeypatch.setattr(huggingface_hub, each, failing)
        if request.param == "small files":
            fetched_folder(address, ["tokenizer*"])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                find_repository(address, "before").whole(["model.safetensors"], "of the test")

    run.calls = calls
    return run


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_cache_that_takes_no_more_is_named_at_once_with_hf_xet_too(download, number):
    reason = re.escape(os.strerror(number))
    message = rf"cannot be written to the cache of huggingface_hub, .*hub_cache \({reason}\); free space there"
    with pytest.raises(InputError, match=message):
        download(of_xet(number))
    assert len(download.calls) == 1


@pytest.mark.parametrize("error", [of_xet(errno.ENOENT), of_xet(errno.ECONNRESET), RuntimeError("No such token")])
def test_other_errors_of_hf_xet_are_tried_again_and_then_one_line(download, error):
    with pytest.raises(InputError, match=f"cannot be reached.*{re.escape(str(error))}") as caught:
        download(error)
    assert "\n" not in str(caught.value)
    assert len(download.calls) == TRIES


def test_an_error_of_the_program_stays_what_it_is(download):
    with pytest.raises(RecursionError):
        download(RecursionError("too deep"))
    assert len(download.calls) == 1


class Unsafe:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved({NAME: Unsafe()}), r"is a pickle of [\w.]*print, which can run code when it is read"),
        (pickle.dumps(Unsafe()), "is a pickle of something else than tensors, which can run code when it is read"),
        (saved({NAME: torch.zeros(9, 4)})[:-100], "is cut short, damaged or no PyTorch file"),
        (saved([1, 2]), "holds no state dict"),
    ],
)
def test_downloaded_torch_files_are_read_with_the_same_care_as_local_ones(hub, capsys, content, message):
    hub.commit("org/after", "main", {BIN: content})
    with pytest.warns(RuntimeWarning, match="downloaded whole"), pytest.raises(InputError, match=message) as caught:
        ks_select_checkpoints("org/before", "org/after")
    assert "\n" not in str(caught.value)
    assert "must not run" not in capsys.readouterr().out

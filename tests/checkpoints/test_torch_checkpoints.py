"""What torch saves: .bin and .pt files, and folders of torch.distributed.checkpoint."""

from __future__ import annotations

import os
import pickle
import shutil

import pytest
import save_sharded
import torch
import torch.distributed.checkpoint as dcp
from stored_tables import BLOCKS, NAME, D, V, refused, write
from torch import nn

from kslottery_fast import InputError, ks_select
from kslottery_fast.base.files import write_json
from kslottery_fast.checkpoints.opening import open_checkpoint
from kslottery_fast.tickets.stored import ks_select_checkpoints

# --- files ---


def test_sparse_and_quantized_tensors_are_named_with_what_to_do(pair, tables, tmp_path):
    after = tmp_path / "after.pt"
    sparse, quantized = tables[1].to_sparse(), torch.quantize_per_tensor(tables[1], 0.1, 0, torch.qint8)
    for odd, kind in ((sparse, "sparse (sparse_coo)"), (quantized, "quantized by torch")):
        torch.save({NAME: odd, "other": torch.ones(2, 3)}, after)
        assert open_checkpoint(after)[NAME].shape == (V, D)
        refused(pair[0], after, f"{after}, tensor {NAME} is {kind}, which is not read here; save it as a dense tensor")
        torch.save({NAME: odd}, after)
        refused(pair[0], after, f"{after} holds no state dict")


@pytest.mark.parametrize("block_bytes", BLOCKS[1:])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "loss": torch.zeros(2)},
        lambda state: {"model": state, "optimizer": {"state": {0: torch.zeros(2)}}},
        lambda state: {name: nn.Parameter(each) for name, each in state.items()},
        lambda state: {name: each.t().contiguous().t() for name, each in state.items()},
    ],
    ids=["plain", "state_dict", "model", "parameters", "transposed"],
)
def test_files_of_torch_give_the_tickets_of_the_tables(pair, tables, tmp_path, wrap, block_bytes):
    torch.save(wrap({NAME: tables[1]}), tmp_path / "after.pt")
    assert ks_select_checkpoints(pair[0], tmp_path / "after.pt", block_bytes=block_bytes) == ks_select(*tables)


def test_files_from_before_torch_1_6_and_other_dtypes(pair, tables, tmp_path):
    state = {NAME: tables[1].bfloat16(), "ids": torch.arange(3), "scalar": torch.tensor(1.0)}
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert ks_select_checkpoints(pair[0], tmp_path / "old.bin") == ks_select(tables[0], tables[1].bfloat16())
    opened = open_checkpoint(tmp_path / "old.bin")
    assert {name: (each.dtype, each.shape) for name, each in opened.items()} == {
        NAME: ("BF16", (V, D)),
        "ids": ("I64", (3,)),
        "scalar": ("F32", ()),
    }


def test_folders_with_one_or_several_pytorch_files(tables, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    torch.save({NAME: tables[0]}, first / "pytorch_model.bin")
    torch.save({"state": {}}, first / "training_args.bin")
    second.mkdir()
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    torch.save({"other.weight": torch.zeros(2, 2)}, second / names[0])
    torch.save({NAME: tables[1]}, second / names[1])
    with pytest.warns(RuntimeWarning, match="second has no index: its 2 weight files are read as one checkpoint"):
        assert ks_select_checkpoints(first, second) == ks_select(*tables)
    index = second / "pytorch_model.bin.index.json"
    write_json(index, {"weight_map": {"other.weight": names[0], NAME: names[1]}})
    for path in (second, index):
        assert ks_select_checkpoints(first, path) == ks_select(*tables)
    index.unlink()
    (second / names[0]).unlink()
    (second / names[1]).rename(second / "pytorch_model-00001-of-00003.bin")
    refused(first, second, f"{second} has no index and lacks 2 of 3 shards: pytorch_model-00002-of-00003.bin, pytorch_")


def test_tensors_without_numbers_are_not_read(pair, tmp_path):
    path = tmp_path / "meta.pt"
    torch.save({NAME: torch.empty(V, D, device="meta")}, path)
    refused(pair[0], path, f"{path} holds no state dict")


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("float8_e5m2fnuz", "8-bit floats of AMD (E5M2FNUZ)"), ("float8_e8m0fnu", "8-bit powers of two")],
)
def test_formats_of_8_bits_have_the_names_that_they_have_in_safetensors(pair, tmp_path, dtype, kind):
    if not hasattr(torch, dtype):
        pytest.skip("torch 2.7 has this dtype first")
    path = tmp_path / "after.pt"
    torch.save({NAME: torch.zeros(V, D, dtype=torch.uint8).view(getattr(torch, dtype))}, path)
    refused(pair[0], path, kind)


class _Runs:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_a_pickle_that_could_run_code_is_refused_in_our_own_words(pair, tmp_path):
    for name, content, held in (
        ("module.pt", nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ("runs.bin", {NAME: _Runs()}, f"{os.system.__module__}.system"),
    ):
        torch.save(content, tmp_path / name)
        refused(pair[0], tmp_path / name, f"{tmp_path / name} is a pickle of {held}, which can run code", "writes safe")
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "jit.pt"))
    refused(pair[0], tmp_path / "jit.pt", "is a pickle of a TorchScript program")


def test_files_of_torch_that_are_damaged_or_something_else(pair, tables, tmp_path):
    path = tmp_path / "model.bin"
    for content in (b"", b"hello, this is text", b"PK\x03\x04 no zip"):
        path.write_bytes(content)
        refused(pair[0], path, f"{path} is cut short, damaged or no PyTorch file (")
    torch.save({NAME: tables[1]}, path)
    os.truncate(path, path.stat().st_size // 2)
    refused(pair[0], path, f"{path} is cut short, damaged or no PyTorch file (")
    for content in (tables[1], {"a": 3}, [tables[1]], {"model": {}}):
        torch.save(content, path)
        refused(pair[0], path, f"{path} holds no state dict: expected a dict of tensors")


def test_a_file_of_torch_that_is_cut_short_while_it_is_read_is_an_error_and_no_crash(pair, tables, tmp_path):
    path = tmp_path / "model.bin"
    torch.save({NAME: tables[1]}, path)
    tensor = open_checkpoint(path)[NAME]
    assert tensor.rows(3, 5).equal(tables[1][3:5])
    os.truncate(path, 1000)
    with pytest.raises(InputError, match="changed while it was read"):
        tensor.rows(3, 5)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        tensor.rows(3, 5)


# --- folders of torch.distributed.checkpoint ---


@pytest.fixture
def saved(tables, tmp_path):
    folder = tmp_path / "saved"
    state = {"model": {"embed_tokens.weight": tables[1], "norm": torch.ones(3), "cube": torch.rand(2, 3, 4)}, "step": 3}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder, state


@pytest.mark.parametrize("block_bytes", BLOCKS[1:])
def test_a_folder_of_one_process_gives_the_tickets_of_the_tables(pair, tables, saved, block_bytes):
    assert ks_select_checkpoints(pair[0], saved[0], block_bytes=block_bytes) == ks_select(*tables)


def test_tensors_of_every_number_of_dimensions_are_read_as_rows(saved):
    opened, state = open_checkpoint(saved[0]), saved[1]["model"]
    assert sorted(opened) == ["model.cube", "model.embed_tokens.weight", "model.norm"]
    assert opened["model.cube"].rows(1, 5).equal(state["cube"].reshape(6, 4)[1:5])
    assert opened["model.norm"].rows(0, 1).equal(state["norm"][None])


def test_a_folder_of_two_processes_is_read_piece_by_piece(tmp_path):
    folder = tmp_path / "saved"
    save_sharded.save_on_two_processes(folder)
    opened, expected = open_checkpoint(folder), save_sharded.made()
    for name, table in expected.items():  # sharded by rows, and by columns
        with opened[name].opened() as reader:
            for start in range(0, V, 40):
                stop = min(V, start + 40)
                assert reader.rows(start, stop).equal(table[start:stop])
    first = write(tmp_path / "before.safetensors", torch.zeros(V, D))
    assert ks_select_checkpoints(first, folder) == ks_select(torch.zeros(V, D), expected[NAME])


def test_folders_that_are_damaged_or_name_code(pair, saved, tmp_path):
    folder, _ = saved
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "__0_0.distcp").write_bytes(b"short")
    refused(pair[0], bad, f"{bad} is damaged: tensor model.embed_tokens.weight takes ", " bytes, and all files of the")
    (bad / "__0_0.distcp").unlink()
    refused(pair[0], bad, f"{bad}, tensor model.embed_tokens.weight cannot be read (FileNotFoundError")
    metadata = pickle.loads((bad / ".metadata").read_bytes())
    pieces = metadata.state_dict_metadata[NAME].chunks
    for offset, size in ((0, V - 1), (1, V)):  # a row that nobody wrote, and one beyond the table
        pieces[0].offsets, pieces[0].sizes = torch.Size([offset, 0]), torch.Size([size, D])
        (bad / ".metadata").write_bytes(pickle.dumps(metadata))
        refused(pair[0], bad, f"the pieces of tensor {NAME} do not make up its shape [{V}, {D}]")
    for content in (b"", b"text", pickle.dumps({"a": 1})):
        (bad / ".metadata").write_bytes(content)
        refused(pair[0], bad, f"{bad / '.metadata'} is not what torch.distributed.checkpoint writes")
    (bad / ".metadata").write_bytes(pickle.dumps(_Runs()))
    refused(pair[0], bad, f"names {os.system.__module__}.system, which could run code")


# --- what else a folder may be ---


def test_the_root_of_a_repository_in_the_cache_points_to_its_snapshot(pair, tmp_path):
    root = tmp_path / "models--org--name"
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    refused(pair[0], root, f"{root} is a repository in the cache of huggingface_hub: pass its snapshot {snapshot}")


def test_links_to_nothing_are_named(pair, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "blobs" / "gone")
    refused(pair[0], link, f"{link} is a symbolic link to {tmp_path / 'blobs' / 'gone'}, which does not exist; copy")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to("gone")
    refused(pair[0], folder, f"{folder / 'model.safetensors'} is a symbolic link to gone, which does not exist")


def test_shards_without_an_index(pair, tables, tmp_path):
    folder = tmp_path / "shards"
    write(folder / "model-00001-of-00002.safetensors", torch.zeros(2, 2), "other.weight")
    write(folder / "model-00002-of-00002.safetensors", tables[1])
    with pytest.warns(RuntimeWarning, match="shards has no index: its 2 weight files are read as one checkpoint"):
        assert ks_select_checkpoints(pair[0], folder) == ks_select(*tables)
    write(folder / "another.safetensors", torch.zeros(2, 2), "more.weight")
    refused(pair[0], folder, "has 2 shards without an index, and other weight files: another.safetensors")
    (folder / "another.safetensors").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()
    refused(pair[0], folder, "has no index and lacks 1 of 2 shards: model-00001-of-00002.safetensors")

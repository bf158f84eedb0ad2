"""GGUF models and adapters on the Hub: the result of the files, and the bytes that they cost."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import huggingface_hub
import peft
import pytest
import torch
from gguf_models import write_gguf
from range_hub import sent, without_bytes_of_the_sizes
from safetensors.torch import save
from stored_tables import V, saved
from tiny_models import TOKENS, make

from kslottery_fast import InputError, ks_select
from kslottery_fast.checkpoints import hub_gguf
from kslottery_fast.checkpoints.gguf_header import read_gguf_header
from kslottery_fast.checkpoints.opening import open_checkpoint
from kslottery_fast.lab.cli.main import main
from kslottery_fast.tickets.scan import scan_checkpoints
from kslottery_fast.tickets.stored import ks_select_checkpoints

BIN = "pytorch_model.bin"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


# --- GGUF ---


@pytest.fixture
def ggufs(hub, tables, tmp_path, monkeypatch):
    """Repositories of one GGUF file each, whose headers have several pieces, and the files."""
    monkeypatch.setattr(hub_gguf, "_PIECE", 512)
    files, numbers = [], []
    for name, table in zip(("before", "after"), tables, strict=True):
        path = tmp_path / f"{name}.gguf"
        tensors = {"big": (torch.zeros(500, 320), "Q8_0"), "token_embd.weight": (table, "Q8_0")}
        numbers.append(write_gguf(path, tensors, tokens=300)["token_embd.weight"])
        hub.commit(f"org/{name}", "main", {"m.gguf": path.read_bytes(), "README.md": b"x"})
        files.append(path)
    return files, numbers


@pytest.mark.parametrize("after", ["org/after", "hf://org/after/m.gguf", "hf://org/after@main/m.gguf"])
def test_of_a_gguf_model_the_header_and_the_table_are_fetched(hub, ggufs, after):
    files, numbers = ggufs
    assert ks_select_checkpoints("org/before", after) == ks_select(*numbers)
    entry = read_gguf_header(files[0])[0].tensors["token_embd.weight"]
    ranges = [each for each in hub.handler.log if each.file == "m.gguf"]
    start = min(tensor.offset for tensor in read_gguf_header(files[0])[0].tensors.values())
    assert sum(each.sent for each in ranges if each.begin >= entry.offset) == 2 * entry.nbytes
    headers = sum(each.sent for each in ranges if each.begin < entry.offset)
    assert 2 * 512 < headers <= 2 * (start + 512 + 1)
    assert files[0].stat().st_size > 10 * start


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0"])
def test_rows_of_a_gguf_model_on_the_hub_are_those_of_the_file(hub, tables, tmp_path, kind):
    write_gguf(tmp_path / "m.gguf", {"token_embd.weight": (tables[1], kind)})
    hub.commit("org/after", "main", {"sub/m.gguf": (tmp_path / "m.gguf").read_bytes()})
    here, there = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint("hf://org/after/sub")
    assert there.source == "hf://org/after/sub"
    (first,), (second,) = here.values(), there.values()
    assert second.remote
    for name in ("dtype", "shape", "nbytes", "note"):
        assert getattr(first, name) == getattr(second, name)
    for start, stop in ((0, V), (7, 30), (V, V)):
        assert first.rows(start, stop).equal(second.rows(start, stop))


def test_a_gguf_file_in_the_cache_is_read_there(hub, ggufs):
    huggingface_hub.hf_hub_download("org/after", "m.gguf")
    hub.handler.log.clear()
    assert ks_select_checkpoints("org/before", "org/after") == ks_select(*ggufs[1])
    assert sum(each.sent for each in hub.handler.log) < ggufs[0][0].stat().st_size / 3


def test_a_gguf_model_in_parts(hub, tables, tmp_path):
    parts = {"a": tables[0], "token_embd.weight": tables[1]}
    for number, (name, table) in enumerate(parts.items(), 1):
        write_gguf(tmp_path / f"m-0000{number}-of-00002.gguf", {name: (table, "F32")})
    files = {path.name: path.read_bytes() for path in tmp_path.glob("m-*.gguf")}
    hub.commit("org/after", "main", files)
    for path in ("org/after", "hf://org/after/m-00002-of-00002.gguf"):
        assert set(open_checkpoint(path)) == set(parts)
    del files["m-00002-of-00002.gguf"]
    hub.commit("org/after", "main", files)
    with pytest.raises(InputError, match=r"org/after lacks m-00002-of-00002.gguf, but m-00001.* is one of 2 parts"):
        open_checkpoint("org/after")


def test_a_repository_with_several_gguf_models_names_them(hub, ggufs):
    content = ggufs[0][0].read_bytes()
    hub.commit("org/after", "main", {"sub/a.gguf": content, "sub/b.gguf": content})
    with pytest.raises(InputError, match=r"has 2 GGUF files: .*hf://org/after/sub/a.gguf \(a.gguf, b.gguf\)"):
        open_checkpoint("hf://org/after/sub")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:2000], "is cut short: its header tells of more than its 2,000 bytes"),
        (lambda content: content[:3], "is not a GGUF file"),
        (lambda content: b"HTML" + content, "is not a GGUF file"),
        (lambda content: content[:4] + b"\x09" + content[5:], "is GGUF of version 9"),
    ],
)
def test_damaged_gguf_files_on_the_hub_are_one_line(hub, ggufs, change, message):
    hub.commit("org/after", "main", {"m.gguf": change(ggufs[0][1].read_bytes())})
    with pytest.raises(InputError, match=rf"^hf://org/after/m.gguf@\w{{7}} {message}"):
        open_checkpoint("org/after")


def test_a_header_that_claims_too_much_is_not_fetched(hub, ggufs, monkeypatch):
    monkeypatch.setattr(hub_gguf, "_MOST", 1024)
    with pytest.raises(InputError, match="its header has more than 1,024 bytes"):
        open_checkpoint("org/after")
    assert sent(hub, "m.gguf") <= 1 + 1024


# --- adapters ---

is_an_adapter = pytest.mark.filterwarnings("ignore:.* is an adapter; it changes:RuntimeWarning")


@pytest.fixture
def adapter(hub, tmp_path) -> Path:
    """An adapter of trained rows in a folder, and on the Hub with its base model."""
    model = make("llama", tied=False)
    model.save_pretrained(tmp_path / "base")
    hub.commit("org/base", "main", {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=TOKENS)
        wrapped = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                parameter.add_(3.0 * torch.randn_like(parameter) if parameter.requires_grad else 0.0)
        wrapped.save_pretrained(tmp_path / "adapter")
    publish(hub, tmp_path / "adapter")
    return tmp_path / "adapter"


def publish(hub, folder: Path, *without: str, into: str = "") -> None:
    files = {into + path.name: path.read_bytes() for path in folder.iterdir() if path.name not in without}
    hub.commit("org/adapter", "main", files)


@is_an_adapter
def test_an_adapter_on_the_hub_is_after_and_costs_its_two_files(hub, adapter):
    expected = ks_select_checkpoints(adapter.parent / "base", adapter, alpha=0.9)
    assert len(expected) > 0
    assert set(expected) <= set(TOKENS)
    hub.handler.log.clear()
    said = rf"org/adapter: {CONFIG} and {WEIGHTS} \(less than 1 MiB\) are downloaded whole, .*: all of an adapter is"
    with pytest.warns(RuntimeWarning, match=said):
        found = ks_select_checkpoints("org/base", "org/adapter", alpha=0.9)
    assert found == expected
    size = sum((adapter / name).stat().st_size for name in (CONFIG, WEIGHTS))
    assert without_bytes_of_the_sizes(sent(hub, CONFIG, WEIGHTS), 2) == size
    assert {each.file for each in hub.handler.log} == {CONFIG, WEIGHTS, "config.json", "model.safetensors"}
    assert ks_select_checkpoints("org/base", f"hf://org/adapter/{WEIGHTS}", alpha=0.9) == expected
    scan = scan_checkpoints("org/base", "org/adapter")
    assert scan.tensors == scan_checkpoints(adapter.parent / "base", adapter).tensors
    assert "org/adapter is an adapter; it changes 1 tensor of org/base" in scan.notes


@is_an_adapter
def test_an_adapter_in_a_folder_of_a_repository(hub, adapter):
    publish(hub, adapter, into="last/")
    expected = ks_select_checkpoints(adapter.parent / "base", adapter, alpha=0.9)
    with pytest.warns(RuntimeWarning, match="downloaded whole"):
        assert ks_select_checkpoints("org/base", "hf://org/adapter/last", alpha=0.9) == expected


@is_an_adapter
def test_an_adapter_of_the_cache_is_read_offline(hub, adapter, monkeypatch):
    expected = ks_select_checkpoints(adapter.parent / "base", adapter, alpha=0.9)
    for name in ("org/base", "org/adapter"):
        huggingface_hub.snapshot_download(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert ks_select_checkpoints("org/base", "org/adapter", alpha=0.9) == expected


def test_adapters_that_do_not_fit_their_place_say_what_to_do(hub, adapter):
    with pytest.raises(InputError, match="before is org/adapter, an adapter: give the base model that it was trained"):
        ks_select_checkpoints("org/adapter", "org/base")
    with pytest.raises(InputError, match="org/adapter holds an adapter, not a model: give it as AFTER"):
        open_checkpoint("org/adapter")
    publish(hub, adapter, WEIGHTS)
    with pytest.raises(InputError, match=f"org/adapter holds {CONFIG} and no {WEIGHTS}"):
        ks_select_checkpoints("org/base", "org/adapter")
    hub.commit("org/adapter", "main", {CONFIG: b"{}", WEIGHTS: save({"a": torch.zeros(2)})})
    with pytest.warns(RuntimeWarning, match="whole"), pytest.raises(InputError, match="is a None adapter: expected"):
        ks_select_checkpoints("org/base", "org/adapter")


# --- commands ---


@pytest.fixture
def progress_bars():
    """Those of huggingface_hub are as before after the test, which quiets them."""
    hidden = huggingface_hub.utils.are_progress_bars_disabled()
    yield
    (huggingface_hub.utils.disable_progress_bars if hidden else huggingface_hub.utils.enable_progress_bars)()


@is_an_adapter
@pytest.mark.usefixtures("progress_bars")
def test_the_commands_say_what_they_download_before_anything_else(hub, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["select", "org/base", "org/adapter", "--alpha", "0.9", "--json"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[1].startswith(f"note: org/adapter: {CONFIG} and {WEIGHTS} (less than 1 MiB) are downloaded whole")
    hub.commit("org/after", "main", {BIN: saved(torch.load(io.BytesIO(saved(make("llama").state_dict()))))})
    assert main(["scan", "org/base", "org/after", "--json", "--quiet"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"note: org/after: {BIN} (less than 1 MiB) is downloaded whole")
    assert "MiB of matrices are compared, and those that are still on the Hub are fetched" in said[1]
    assert huggingface_hub.utils.are_progress_bars_disabled()

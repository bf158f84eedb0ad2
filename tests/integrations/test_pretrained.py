"""Models and tokenizers by transformers: errors of one line, and what else a checkpoint folder has.

What a model is after loading is tested with the experiments, in ``tests/lab/test_models.py``.
"""

from __future__ import annotations

import pytest
import torch

from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.batches import GroupedBatches
from kslottery_fast.integrations.pretrained import (
    choose_device,
    choose_dtype,
    convert_gguf,
    load_causal_lm,
    native_bfloat16,
)
from kslottery_fast.integrations.resuming import Checkpoints
from kslottery_fast.integrations.tokenizers import load_tokenizer, tokenizer_folder


def test_a_model_and_its_tokenizer_come_from_a_folder_and_errors_are_one_line(tmp_path, tiny_llama, tiny_tokenizer):
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_causal_lm(str(tmp_path), torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"^cannot load model '.*': .*; give a Hugging Face id, a model folder or a"):
        load_causal_lm(str(tmp_path), torch.float32)
    with pytest.raises(InputError, match=r"^cannot load model 'mine': .*; look again$"):
        load_causal_lm(str(tmp_path), torch.float32, name="mine", remedy="look again")


def test_a_tokenizer_is_found_beside_the_first_checkpoint_that_has_one(tmp_path, tiny_tokenizer):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    assert tokenizer_folder(before, after / "model.safetensors") is None
    tiny_tokenizer.save_pretrained(after)
    assert tokenizer_folder(before, after / "model.safetensors") == after
    assert load_tokenizer(after).get_vocab() == tiny_tokenizer.get_vocab()
    for nothing in (before, after / "tokenizer.json", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"holds no tokenizer: expected a folder that save_pretrained wrote"):
            load_tokenizer(nothing)


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512vl\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", False),
    ],
)
def test_native_bfloat16_reads_the_flags_of_x86_and_arm(tmp_path, line, native):
    (tmp_path / "cpuinfo").write_text(line)
    assert native_bfloat16(tmp_path / "cpuinfo") is native
    assert native_bfloat16(tmp_path / "missing") is False


CPU = torch.device("cpu")


@pytest.mark.parametrize("wrong", [None, 3, 0.5, ["a"], [], torch.nn.Embedding(3, 2)])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("location", lambda wrong: load_causal_lm(wrong, torch.float32)),
        ("dtype", lambda wrong: load_causal_lm("gpt2", wrong)),
        ("gguf", lambda wrong: convert_gguf(wrong, "folder")),
        ("folder", lambda wrong: convert_gguf("a.gguf", wrong)),
        ("device", choose_device),
        ("dtype", lambda wrong: choose_dtype(wrong, CPU)),
        ("device", lambda wrong: choose_dtype("auto", wrong)),
        ("checkpoints", tokenizer_folder),
        ("folder", load_tokenizer),
        ("folder", lambda wrong: Checkpoints(wrong, {})),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(name, call, wrong):
    with pytest.raises((InputError, TypeError), match=rf"^(unknown )?{name} "):
        call(wrong)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lengths", ((length for length in (1, 2)), 2, 0)),  # every epoch reads them again
        ("lengths", ([1, 2.5], 2, 0)),
        ("lengths", ("ab", 2, 0)),
        ("batch_size", ([1, 2], 0, 0)),
        ("seed", ([1, 2], 2, None)),
        ("group", ([1, 2], 2, 0, 0.5)),
    ],
)
def test_batches_of_what_cannot_be_counted_are_refused(name, arguments):
    with pytest.raises((InputError, TypeError), match=rf"^{name} is "):
        GroupedBatches(*arguments)

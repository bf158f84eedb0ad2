"""8-bit floats: exact without scales, multiplied by scales of the known forms, and refused by name otherwise."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from stored_tables import NAME, refused, write

from kslottery_fast import ks_select
from kslottery_fast.checkpoints.opening import open_checkpoint
from kslottery_fast.tickets.scan import scan_checkpoints
from kslottery_fast.tickets.stored import ks_select_checkpoints

V, D = 300, 200
FORMATS = [torch.float8_e4m3fn, torch.float8_e5m2]
SCALE = f"{NAME}_scale"


def table(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (V, D)), generator=torch.Generator().manual_seed(seed))


def in_blocks(scales: torch.Tensor, rows: int, columns: int, height: int, width: int) -> torch.Tensor:
    """One scale for each number, from one for each block."""
    return scales.repeat_interleave(rows, 0)[:height].repeat_interleave(columns, 1)[:, :width]


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_8_bit_float_is_read_exactly_without_a_scale(tmp_path, dtype):
    every = torch.arange(256, dtype=torch.uint8).view(dtype).view(2, 128)
    tensor = open_checkpoint(write(tmp_path / "a.safetensors", every))[NAME]
    rows = tensor.rows(0, 2)
    assert torch.equal(rows.float().nan_to_num(7e7), every.float().nan_to_num(7e7))
    assert (rows.dtype, tensor.floats) == (torch.bfloat16, torch.bfloat16)
    assert tensor.note == f"FP8 {'E4M3' if dtype == FORMATS[0] else 'E5M2'} without scales"


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "name", "form"),
    [
        ((), "weight_scale", "with one scale"),
        ((1,), "weight_scale", "with one scale"),
        ((1, 1), "weight_scale_inv", "with one scale"),
        ((V,), "weight_scale", "with a scale for each row"),
        ((V, 1), "weight_scale", "with a scale for each row"),
        ((3, 2), "weight_scale_inv", "with a scale for each block of 128 x 128"),
        ((3, 2), "weight_scale", "with a scale for each block of 128 x 128"),
    ],
)
def test_scales_multiply_whatever_the_block_of_rows(tmp_path, dtype, scale_dtype, shape, name, form):
    stored = table().to(dtype)
    scales = (table(1, *shape) if shape else torch.tensor(0.37)).to(scale_dtype)
    path = write(tmp_path / "a.safetensors", stored, **{f"model.embed_tokens.{name}": scales})
    checkpoint = open_checkpoint(path)
    assert list(checkpoint) == [NAME]
    if shape in ((3, 2),):
        each = in_blocks(scales.float(), 128, 128, V, D)
    else:
        each = scales.float().view(-1, 1).expand(V, D) if math.prod(shape) > 1 else scales.float().view(())
    expected = stored.float() * each
    tensor = checkpoint[NAME]
    assert (tensor.note[9:], tensor.floats) == (form, torch.float32)
    for start, stop in ((0, V), (0, 1), (127, 129), (250, V), (9, 9)):
        assert torch.equal(tensor.rows(start, stop), expected[start:stop])


def test_the_size_of_blocks_comes_from_the_config(tmp_path):
    stored, scales = table().to(FORMATS[0]), table(1, 5, 10)
    write(tmp_path / "model.safetensors", stored, **{f"{NAME}_scale_inv": scales})
    config = {"vocab_size": V, "quantization_config": {"weight_block_size": [64, 20]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = stored.float() * in_blocks(scales, 64, 20, V, D)
    assert torch.equal(open_checkpoint(tmp_path)[NAME].rows(3, V), expected[3:])
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": V}))
    refused(tmp_path, tmp_path, "shape [300, 200] with scales", "shape [5, 10]: expected one scale, one for each row")


@pytest.mark.parametrize("form", ["blocks", "rows", "matrix", "matrices"])
def test_scales_of_matrices_one_below_the_other(tmp_path, form):
    stored = table(0, 2, 150, 130).to(FORMATS[0])
    shape = {"blocks": (2, 2, 2), "rows": (2, 150, 1), "matrix": (2,), "matrices": (2, 1, 1)}[form]
    scales = table(1, *shape)
    path = write(tmp_path / "a.safetensors", stored, "experts.weight", **{"experts.weight_scale": scales})
    if form == "blocks":
        each = torch.stack([in_blocks(part, 128, 128, 150, 130) for part in scales])
    else:
        each = scales.view(2, -1, 1).expand(2, 150, 130)
    expected = (stored.float() * each).view(300, 130)
    tensor = open_checkpoint(path)["experts.weight"]
    assert torch.equal(tensor.rows(0, 300), expected)
    assert torch.equal(tensor.rows(149, 290), expected[149:290])


@pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="torch 2.7 has this dtype first")
def test_scales_may_be_powers_of_two_in_8_bits(tmp_path):
    stored, scales = table().to(FORMATS[0]), torch.tensor([[0.5, 2.0], [1.0, 4.0], [8.0, 0.25]])
    header = {
        NAME: {"dtype": "F8_E4M3", "shape": [V, D], "data_offsets": [0, V * D]},
        f"{NAME}_scale_inv": {"dtype": "F8_E8M0", "shape": [3, 2], "data_offsets": [V * D, V * D + 6]},
    }
    text = json.dumps(header).encode()
    data = (
        stored.view(torch.uint8).numpy().tobytes() + scales.to(torch.float8_e8m0fnu).view(torch.uint8).numpy().tobytes()
    )
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    rows = open_checkpoint(tmp_path / "a.safetensors")[NAME].rows(0, V)
    assert torch.equal(rows, stored.float() * in_blocks(scales, 128, 128, V, D))


def test_two_fp8_checkpoints_are_compared_as_their_numbers_are(tmp_path, recwarn):
    before = table().to(FORMATS[0])
    after = before.clone()
    after[[5, 17]] = (3 * before[[5, 17]].float() + 1).to(FORMATS[0])
    scales = table(1, V, 1).abs()
    paths = [
        write(
            tmp_path / f"{name}.safetensors", each, **{SCALE: scales, "model.embed_tokens.input_scale": torch.ones(())}
        )
        for name, each in (("a", before), ("b", after))
    ]
    tickets = ks_select_checkpoints(*paths, block_bytes=7 * 8 * D)
    expected = ks_select(before.float() * scales, after.float() * scales)
    assert tickets.token_ids.equal(expected.token_ids)
    assert tickets.statistic.equal(expected.statistic)
    assert sorted(tickets) == [5, 17]
    assert not recwarn.list


def test_an_after_all_in_fp8_is_compared_and_the_rounding_is_told(tmp_path):
    before = table()
    after = before.clone()
    after[5] = 3 * before[5] + 1
    names = [NAME, "model.layers.0.mlp.up_proj.weight"]
    save_file({name: before.clone() for name in names}, tmp_path / "a.safetensors")
    quantized = {name: after.to(FORMATS[0]) for name in names} | {f"{name}_scale": torch.tensor(1.0) for name in names}
    save_file(quantized, tmp_path / "b.safetensors")
    with pytest.warns(RuntimeWarning, match=r"b\.safetensors, .* was quantized \(FP8 E4M3 with one scale\).*rounding"):
        assert list(ks_select_checkpoints(tmp_path / "a.safetensors", tmp_path / "b.safetensors")) == [5]
    scan = scan_checkpoints(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [(shift.name, shift.significant_rows) for shift in scan.tensors] == [(name, 1) for name in names]
    assert scan.only_after == scan.quantized == []
    assert scan.notes == [
        "2 matrices are quantized in AFTER (FP8 E4M3 with one scale): rounding moves every row, also those that "
        "training never touched"
    ]


def test_one_scale_for_all_rows_is_told_where_both_are_quantized(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", table().to(FORMATS[0]), **{SCALE: torch.tensor(2.0)})
    with (
        pytest.warns(RuntimeWarning, match="no row"),
        pytest.warns(RuntimeWarning, match="both tables were quantized .* moves if a row that shares its scale did"),
    ):
        ks_select_checkpoints(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("others", "parts"),
    [
        (
            {SCALE: (V, 2)},
            ["scales model.embed_tokens.weight_scale of dtype F32 and shape [300, 2]: expected one scale"],
        ),
        ({SCALE: (D,)}, ["shape [200]"]),
        ({"model.embed_tokens.scale_weight": ()}, ["scales that are not understood (model.embed_tokens.scale_weight)"]),
        (
            {SCALE: (), f"{NAME}_scale_2": ()},
            ["not understood (model.embed_tokens.weight_scale and", "weight_scale_2)"],
        ),
        ({SCALE: (), f"{NAME}_scale_inv": ()}, ["weight_scale and model.embed_tokens.weight_scale_inv)"]),
    ],
)
def test_scales_of_another_form_are_refused_by_name(tmp_path, others, parts):
    scales = {name: torch.ones(shape) for name, shape in others.items()}
    path = write(tmp_path / "a.safetensors", table().to(FORMATS[0]), **scales)
    refused(path, path, NAME, "is FP8", *parts, "dequantize the checkpoint and save it")
    other = write(tmp_path / "b.safetensors", table(), "x.weight")
    save_file({NAME: table().to(FORMATS[0]), "x.weight": table(), **scales}, path)
    save_file({NAME: table(), "x.weight": table()}, other)
    assert scan_checkpoints(path, other).quantized == [NAME]  # one odd tensor does not end a scan


PACKED = [
    (torch.uint8, {f"{NAME}.absmax": torch.ones(3)}, "packed 4-bit floats of bitsandbytes"),
    (torch.uint8, {f"{NAME}.quant_state.bitsandbytes__nf4": torch.ones(3), f"{NAME}.absmax": torch.ones(3)}, "(NF4)"),
    (torch.int8, {"model.embed_tokens.SCB": torch.ones(3)}, "8-bit integers of bitsandbytes"),
    (torch.uint8, {SCALE: torch.ones(3), f"{NAME}_scale_2": torch.ones(())}, "(NVFP4)"),
    (torch.int8, {SCALE: torch.ones(3)}, "integers with scales"),
    (torch.float8_e4m3fnuz, {}, "8-bit floats of AMD (E4M3FNUZ)"),
]


@pytest.mark.parametrize(("dtype", "others", "kind"), PACKED)
def test_packed_formats_are_refused_by_name(tmp_path, dtype, others, kind):
    path = write(tmp_path / "a.safetensors", torch.zeros(V, D).to(dtype), **others)
    refused(path, path, f"{path}, tensor {NAME} holds", kind, "compare the checkpoint from before the quantization")


@pytest.mark.parametrize(
    ("last", "beside", "kind"), [("qweight", "qzeros", "GPTQ or AWQ"), ("weight_packed", "weight_scale", "compressed")]
)
def test_a_packed_embedding_under_another_name_is_told(tmp_path, last, beside, kind):
    others = {f"model.embed_tokens.{beside}": torch.ones(3)}
    path = write(
        tmp_path / "a.safetensors", torch.zeros(V, 4, dtype=torch.int32), f"model.embed_tokens.{last}", **others
    )
    refused(path, path, f"model.embed_tokens.{last} holds packed", kind, "compare the checkpoint from before")


def test_plain_integers_say_that_they_are_no_floats(tmp_path):
    path = write(tmp_path / "a.safetensors", torch.zeros(V, D, dtype=torch.int8))
    refused(path, path, f"{path}, tensor {NAME} has dtype I8: expected F64, F32, F16 or BF16")

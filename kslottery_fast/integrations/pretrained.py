"""Models by transformers: where they go, quiet loading with errors of one line, ordinary ones out of GGUF files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError
from transformers import modeling_gguf_pytorch_utils

from kslottery_fast.base.cache import file_sha256
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_directory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MODEL_FILES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py"}
_REMEDY = "give a Hugging Face id, a model folder or a .gguf file"


def load_causal_lm(
    location: str,
    dtype: torch.dtype,
    *,
    name: str | None = None,
    remedy: str = _REMEDY,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    A model in a GGUF file is dequantized, and afterwards one like any other: it can be trained and saved.

    Parameters
    ----------
    location : str
        What ``from_pretrained`` takes: a folder or a Hugging Face id.
    dtype : torch.dtype
        Of the weights.
    name, remedy : str, optional
        What error messages call the model, by default ``location``, and what they advise.
    **options
        Of both ``from_pretrained``, such as ``gguf_file``, ``revision`` or ``local_files_only``.

    Returns
    -------
    model, tokenizer

    Raises
    ------
    InputError
        Whatever goes wrong, in one line; the original error is its cause.
    """
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)
    # transformers, the hub client, safetensors and gguf raise a dozen kinds for a file or name that is not right.
    except Exception as error:
        raise InputError(f"cannot load model {name or location!r}: {_first_line(error)}; {remedy}") from error
    if "gguf_file" in options:
        # Dequantized, but still marked as quantized: training and saving would be refused.
        model.is_quantized = False
        model.hf_quantizer = None
        model.config.__dict__.pop("quantization_config", None)
    return model, tokenizer


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the weights (float32) and the tokenizer of a GGUF file as a safetensors folder, whole or not at all.

    Raises
    ------
    InputError
        A file that cannot be loaded.
    OSError
        A folder that cannot be written, a full disk included.
    """
    model, tokenizer = load_causal_lm(str(gguf.parent), torch.float32, name=str(gguf), gguf_file=gguf.name)
    with quiet_transformers(), atomic_directory(folder) as temporary:
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:  # its kind for a full disk is not an OSError
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise
        tokenizer.save_pretrained(temporary)


def choose_device(device: str) -> torch.device:
    """The device of that name; auto is CUDA if there is one. InputError: one that torch does not know or see."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise InputError(f"device {device!r}: torch sees {count} CUDA devices; use auto or cpu")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; auto is bfloat16 where ``device`` multiplies it natively, else float32.

    Raises
    ------
    InputError
        A name that is neither auto nor a key of ``DTYPES``.
    """
    if dtype == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else native_bfloat16()
        return torch.bfloat16 if native else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def native_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this CPU multiplies bfloat16 natively (AVX512-BF16, AMX, ARM BF16); False if not known."""
    try:
        return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text("utf-8", "replace")))
    except OSError:
        return False


def hub_in_reach() -> bool:
    """Tell whether the Hugging Face Hub's host has an address; behind a proxy that is for the proxy to know."""
    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme):
        return True
    try:
        return bool(socket.getaddrinfo(address.hostname, address.port or address.scheme))
    except OSError:
        return False


def folder_sha256(folder: Path) -> str:
    """One SHA-256 over names and contents of what makes the model: weights, configuration, tokenizer, code."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_FILES:
            digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


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


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text.rstrip(".") if len(text) <= 240 else text[:239] + "…"
    # The bare text of a KeyError or an IndexError says little without its kind.
    return text if text and isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"

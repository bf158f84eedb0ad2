"""Loading models with transformers: quietly, on a chosen device, with errors of one line, also from GGUF files."""

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

from kslottery_fast.base.arguments import check_path, shown
from kslottery_fast.base.cache import file_sha256
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import atomic_directory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The floating-point types that a model can be loaded in, by name."""

_MODEL_FILES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py"}
_REMEDY = "give a Hugging Face id, a model folder or a .gguf file"


def load_causal_lm(
    location: str | os.PathLike[str],
    dtype: torch.dtype,
    *,
    name: str | None = None,
    remedy: str = _REMEDY,
    **options: Any,
) -> tuple[Any, transformers.PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    A model in a GGUF file is dequantized. Afterwards it is like any other model: it can be trained and saved.

    Parameters
    ----------
    location : str or path
        What ``from_pretrained`` takes: a folder or a Hugging Face id.
    dtype : torch.dtype
        The type of the weights.
    name : str, optional
        What error messages call the model. The default is ``location``.
    remedy : str, optional
        What error messages advise.
    **options
        Further arguments of both ``from_pretrained``, such as ``gguf_file``, ``revision`` or ``local_files_only``.

    Returns
    -------
    model : transformers.PreTrainedModel
        Typed Any: type checkers misread its ``to``, which transformers decorates.
    tokenizer : transformers.PreTrainedTokenizerBase

    Raises
    ------
    InputError
        The model or its tokenizer cannot be loaded. The message has one line; the original error is its cause.
    TypeError
        ``location`` is not a str or path, or ``dtype`` is not a floating-point ``torch.dtype``.

    Examples
    --------
    >>> load_causal_lm("no/such/folder/", torch.float32)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: cannot load model 'no/such/folder/': ...
    """
    if not isinstance(location, (str, os.PathLike)):
        raise TypeError(f"location is {shown(location)}: expected a Hugging Face id or a model folder")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is {shown(dtype)}: expected a floating-point torch.dtype such as torch.bfloat16")
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)
    # transformers, the hub client, safetensors and gguf raise a dozen classes for a wrong file or name.
    except Exception as error:
        raise InputError(f"cannot load model {name or str(location)!r}: {_first_line(error)}; {remedy}") from error
    if "gguf_file" in options:
        # The weights are dequantized, but the model is still marked as quantized and could not be trained or saved.
        model.is_quantized = False
        model.hf_quantizer = None
        model.config.__dict__.pop("quantization_config", None)
    return model, tokenizer


def convert_gguf(gguf: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Write the weights (float32) and the tokenizer of a GGUF file as a safetensors folder, whole or not at all.

    Parameters
    ----------
    gguf : str or path
        The file to read.
    folder : str or path
        The folder to write.

    Raises
    ------
    InputError
        The file cannot be loaded.
    OSError
        The folder cannot be written, for example on a full disk.
    """
    gguf, folder = check_path(gguf, "gguf"), check_path(folder, "folder")
    model, tokenizer = load_causal_lm(gguf.parent, torch.float32, name=str(gguf), gguf_file=gguf.name)
    with quiet_transformers(), atomic_directory(folder) as temporary:
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:  # raised instead of an OSError on a full disk
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise
        tokenizer.save_pretrained(temporary)


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device of a name.

    Parameters
    ----------
    device : str or torch.device
        ``"auto"`` is the GPU if torch finds one, else the CPU. Otherwise a name that torch accepts.

    Returns
    -------
    torch.device

    Raises
    ------
    InputError
        torch does not know the name, or does not see the GPU.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(device, (str, torch.device)):
        raise InputError(f"unknown device {shown(device)}; expected auto, cpu, cuda or cuda:N")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise InputError(f"device {str(device)!r}: torch finds {count} CUDA devices; use auto or cpu")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the floating-point type of a name.

    Parameters
    ----------
    dtype : {"auto", "float32", "bfloat16", "float16"}
        ``"auto"`` is bfloat16 where ``device`` multiplies it natively, else float32.
    device : torch.device
        Where the model will run.

    Returns
    -------
    torch.dtype

    Raises
    ------
    InputError
        The name is neither ``"auto"`` nor a key of ``DTYPES``.
    TypeError
        ``device`` is not a ``torch.device``.

    Examples
    --------
    >>> choose_dtype("bfloat16", torch.device("cpu"))
    torch.bfloat16
    """
    if not isinstance(dtype, str) or dtype not in ("auto", *DTYPES):
        raise InputError(f"unknown dtype {dtype!r}; expected auto, {', '.join(DTYPES)}")
    if not isinstance(device, torch.device):
        raise TypeError(f"device is {shown(device)}: expected a torch.device; choose_device makes one of a name")
    if dtype == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else native_bfloat16()
        return torch.bfloat16 if native else torch.float32
    return DTYPES[dtype]


def native_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this CPU multiplies bfloat16 natively (AVX512-BF16, AMX or ARM BF16).

    Parameters
    ----------
    cpuinfo : Path
        The file in which Linux describes the CPU.

    Returns
    -------
    bool
        Also False if the file cannot be read.
    """
    try:
        return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo.read_text("utf-8", "replace")))
    except OSError:
        return False


def hub_in_reach() -> bool:
    """Tell whether the host of the Hugging Face Hub has an address. Behind a proxy the answer is always True."""
    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme):
        return True
    try:
        return bool(socket.getaddrinfo(address.hostname, address.port or address.scheme))
    except OSError:
        return False


def folder_sha256(folder: Path) -> str:
    """Return one SHA-256 over the names and contents of all files that make up a model.

    These files are the weights, the configuration, the tokenizer and the code.

    Parameters
    ----------
    folder : Path
        The folder of the model.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_FILES:
            digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars, log lines and warnings of transformers inside the block, and restore them after it."""
    logging, hub_logging = transformers.utils.logging, huggingface_hub.logging
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars, gguf_bar = logging.is_progress_bar_enabled(), modeling_gguf_pytorch_utils.tqdm
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    modeling_gguf_pytorch_utils.tqdm = logging.tqdm  # the only bar that ignores the switch of transformers
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
    # Without its class, the text of a KeyError or an IndexError says little.
    return text if text and isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"

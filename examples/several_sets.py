"""Keeps several sets of rows on one model, switches between them without copying, and mixes them in one batch.

Run it as ``python examples/several_sets.py``. It writes no files.
"""

from typing import Any

import tiny
import torch

from kslottery_fast import add_rows, attach_rows, get_rows, mixed_rows, row_sets, use_rows

tokenizer = tiny.tokenizer()
model: Any = tiny.model().eval()  # Any, since transformers declares generate for fewer classes than have it
attach_rows(model, tokenizer(" =a")["input_ids"], name="en-es")
add_rows(model, "en-ca", tokenizer(" =eo")["input_ids"])  # or load_adapter(model, path, name="en-ca")
with torch.no_grad():
    for pair in row_sets(model):
        rows = get_rows(use_rows(model, pair)).rows
        rows.add_(torch.randn_like(rows))  # in place of training

prompts = tokenizer(["house =", "house =", "house ="], return_tensors="pt")
options = {"max_new_tokens": 8, "do_sample": False}
with mixed_rows(model, ["en-es", "en-ca", None]):  # one name for each example; None is the base model
    mixed = model.generate(**prompts, **options)

for name, text in zip([*row_sets(model), None], tokenizer.batch_decode(mixed), strict=True):
    use_rows(model, name)  # for whole batches from here on
    alone = model.generate(**{key: value[:1] for key, value in prompts.items()}, **options)
    print(f"{name!s:6} {text!r}")
    assert tokenizer.decode(alone[0]) == text

"""Teaches an M2M100 a language that it does not know, by the row of a new language code. Nothing else trains.

Run it as ``python examples/new_language.py [FOLDER]``. The row goes to FOLDER (runs/new_language) as an adapter, which
leaves the model's own languages as they are. Neither M2M100 nor Whisper knows Esperanto; the same works for Whisper.
"""

import sys
from typing import Any

import tiny

from kslottery_fast import RowAdamW, add_tokens, attach_rows, get_rows, save_adapter

output = sys.argv[1] if len(sys.argv) > 1 else "runs/new_language"
pairs = [
    ("house", "domo"),
    ("file", "dosiero"),
    ("save", "konservi"),
    ("red", "ruĝa"),
    ("all", "ĉio"),
    ("page", "paĝo"),
]
model: Any  # transformers declares generate for fewer classes than have it
model, tokenizer = tiny.translator()

# Esperanto starts as Spanish. The noise matters when several codes start from one row.
spanish = tokenizer.get_vocab()["__es__"]
[esperanto] = add_tokens(model, tokenizer, "__eo__", special=True, init=spanish, noise=0.01)
attach_rows(model, [esperanto])

batch = tokenizer([f"__en__{word}</s>" for word, _ in pairs], return_tensors="pt", padding=True)
labels = tokenizer([f"__eo__{word}</s>" for _, word in pairs], return_tensors="pt", padding=True)["input_ids"]
labels[labels == tokenizer.pad_token_id] = -100
inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

optimizer = RowAdamW([get_rows(model).rows], lr=5e-2, weight_decay=0.0)
losses = []
for _ in range(60):
    optimizer.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss: {losses[0]:.2f} -> {losses[-1]:.2f}")

made = model.generate(
    input_ids=batch["input_ids"],
    attention_mask=batch["attention_mask"],
    forced_bos_token_id=esperanto,
    max_new_tokens=8,
)
save_adapter(model, output)

"""Teaches an M2M100 a language that it does not know, by the row of a new language code. Nothing else trains.

Run it as ``python examples/new_language.py [FOLDER]``. The row goes to FOLDER (runs/new_language) as an adapter, which
leaves the model's own languages as they are. The same works for the language tokens of Whisper. The tiny M2M100 here
knows English and Spanish. The published M2M100 and Whisper know Catalan too, so take a language that they lack.
"""

import sys
from typing import Any

import tiny

from kslottery_fast import RowAdamW, add_tokens, attach_rows, get_rows, save_adapter

output = sys.argv[1] if len(sys.argv) > 1 else "runs/new_language"
pairs = [
    ("house", "casa"),
    ("file", "fitxer"),
    ("save", "desa"),
    ("red", "vermell"),
    ("all", "tot"),
    ("page", "pàgina"),
]
model: Any  # transformers declares generate for fewer classes than have it
model, tokenizer = tiny.translator()

# Catalan starts as Spanish. The noise matters when several codes start from one row.
spanish = tokenizer.get_vocab()["__es__"]
[catalan] = add_tokens(model, tokenizer, "__ca__", special=True, init=spanish, noise=0.01)
attach_rows(model, [catalan])

batch = tokenizer([f"__en__{word}</s>" for word, _ in pairs], return_tensors="pt", padding=True)
labels = tokenizer([f"__ca__{word}</s>" for _, word in pairs], return_tensors="pt", padding=True)["input_ids"]
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
    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], forced_bos_token_id=catalan, max_new_tokens=8
)
save_adapter(model, output)

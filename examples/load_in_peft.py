"""Saves rows as a PEFT adapter and shows that PEFT computes the same logits from it without this package.

Run it as ``python examples/load_in_peft.py [FOLDER]``. The adapter goes to FOLDER (runs/load_in_peft).
"""

import sys

import tiny
import torch
from peft import PeftModel

from kslottery_fast import attach_rows, get_rows, load_adapter, save_adapter

output = sys.argv[1] if len(sys.argv) > 1 else "runs/load_in_peft"
tokenizer = tiny.tokenizer()
batch = tokenizer(tiny.texts(4), return_tensors="pt", padding=True)

model = attach_rows(tiny.model(), tokenizer(" =aeo")["input_ids"])
with torch.no_grad():
    get_rows(model).rows.add_(torch.randn_like(get_rows(model).rows))  # in place of training
    ours = model(**batch).logits
    save_adapter(model, output)

    with_peft = PeftModel.from_pretrained(tiny.model(), output)(**batch).logits
    again = load_adapter(tiny.model(), output)(**batch).logits
print(f"largest difference of logits: {(with_peft - ours).abs().max():.1e} with PEFT, ", end="")
print(f"{(again - ours).abs().max():.1e} with load_adapter")
assert torch.equal(with_peft, ours)
assert torch.equal(again, ours)

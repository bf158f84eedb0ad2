"""Rows as a PEFT adapter: PEFT computes what our model computes, without this package."""

import sys

import tiny
import torch
from peft import PeftModel

from kslottery_fast import attach_rows, get_rows
from kslottery_fast.rows import load_adapter, save_adapter

output = sys.argv[1] if len(sys.argv) > 1 else "runs/load_in_peft"
tokenizer = tiny.tokenizer()
batch = tokenizer(tiny.texts(4), return_tensors="pt", padding=True)

model = attach_rows(tiny.model(), tokenizer(" =aeo")["input_ids"])
with torch.no_grad():
    get_rows(model).rows.add_(torch.randn_like(get_rows(model).rows))  # instead of training
    ours = model(**batch).logits
    save_adapter(model, output)

    with_peft = PeftModel.from_pretrained(tiny.model(), output)(**batch).logits
    again = load_adapter(tiny.model(), output)(**batch).logits
print(
    f"PEFT differs from us by {(with_peft - ours).abs().max().item():.1e}, a reload by {(again - ours).abs().max():.1e}"
)
assert torch.equal(with_peft, ours)
assert torch.equal(again, ours)

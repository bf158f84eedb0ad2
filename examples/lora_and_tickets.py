"""Trains LoRA weights and the rows of a few tokens with one optimizer, and saves each as a PEFT adapter.

Run it as ``python examples/lora_and_tickets.py [FOLDER]``. The adapters go to FOLDER (runs/lora_and_tickets).
"""

import sys

import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import default_data_collator

from kslottery_fast import RowAdamW, attach_rows, detach_rows, get_rows, save_adapter

output = sys.argv[1] if len(sys.argv) > 1 else "runs/lora_and_tickets"
base, tokenizer = tiny.model(), tiny.tokenizer()
model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
attach_rows(base, tokenizer(" =aeo")["input_ids"], freeze=False)  # after PEFT, whose weights stay trainable

rows = get_rows(model).rows
lora = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter is not rows]
optimizer = RowAdamW([{"params": [rows], "lr": 1e-1}, {"params": lora, "lr": 1e-2, "weight_decay": 0.01}])

model.train()
for step, batch in enumerate(DataLoader(tiny.examples(80), batch_size=4, collate_fn=default_data_collator), start=1):
    loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([rows, *lora], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step:2}: loss {loss.item():.3f}")

model.save_pretrained(f"{output}/lora")  # PEFT saves the LoRA weights
save_adapter(base, f"{output}/rows")  # and this package the rows
detach_rows(base)

"""Trains the rows of a few tokens in a plain PyTorch loop, with a schedule, gradient accumulation and clipping.

Run it as ``python examples/plain_loop.py [FOLDER]``. The trained model goes to FOLDER (runs/plain_loop).
"""

import sys
from pathlib import Path

import tiny
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator, get_cosine_schedule_with_warmup

from kslottery_fast import RowAdamW, attach_rows, get_rows, merge_rows

STEPS, ACCUMULATE = 20, 2
output = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/plain_loop")

model, tokenizer = tiny.model(), tiny.tokenizer()
tickets = tokenizer(" =aeo")["input_ids"]  # or the tickets of ks_select
attach_rows(model, tickets)  # freezes everything else

optimizer = RowAdamW([get_rows(model).rows], lr=1e-1, weight_decay=0.0)
schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=STEPS)
batches = DataLoader(tiny.examples(STEPS * ACCUMULATE * 4), batch_size=4, collate_fn=default_data_collator)

model.train()
for index, batch in enumerate(batches):
    loss = model(**batch).loss / ACCUMULATE
    loss.backward()
    if index % ACCUMULATE == ACCUMULATE - 1:
        torch.nn.utils.clip_grad_norm_(get_rows(model).rows, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"step {index // ACCUMULATE + 1:2}: loss {loss.item() * ACCUMULATE:.3f}")

merge_rows(model).save_pretrained(output)  # an ordinary model
tokenizer.save_pretrained(output)

"""Trains rows with FSDP2: the frozen model is sharded, every process has all rows, and only their gradient is reduced.

Run it as ``torchrun --nproc-per-node 2 examples/fsdp2.py [FOLDER]``. The adapter goes to FOLDER (runs/fsdp2).
"""

import os
import sys

import tiny
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler
from transformers import default_data_collator

from kslottery_fast import RowAdamW, attach_rows, get_rows
from kslottery_fast.rows import gather_rows, replicate_rows, save_rows_adapter

output = sys.argv[1] if len(sys.argv) > 1 else "runs/fsdp2"
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # torchrun sets it
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
with device:  # the model must be on its device before replicate_rows sends the rows to all processes
    model = tiny.model(tied=False)
data = tiny.examples(64)
tickets = tiny.tokenizer()(" =aeo")["input_ids"]
attach_rows(model, tickets)
whole = replicate_rows(model)  # without this line FSDP2 shards the rows too
for layer in model.model.layers:
    fully_shard(layer, ignored_params=whole)
fully_shard(model, ignored_params=whole)

optimizer = RowAdamW([get_rows(model).rows], lr=1e-1)
for batch in DataLoader(data, batch_size=4, sampler=DistributedSampler(data), collate_fn=default_data_collator):
    loss = model(**{name: values.to(device) for name, values in batch.items()}).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"loss {loss.item():.3f}")

rows = gather_rows(model)
if dist.get_rank() == 0:
    save_rows_adapter(tickets, rows, output, vocab_size=model.config.vocab_size)
dist.destroy_process_group()

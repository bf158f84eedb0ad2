"""FSDP2: the frozen model in shards, the rows whole on every process; k x d numbers are reduced a step.

torchrun --nproc-per-node 2 examples/fsdp2.py
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
# On its device before the rows are replicated: their first values are sent around, and fully_shard leaves them alone.
model, data = tiny.model(tied=False).to(device), tiny.examples(64)
tickets = tiny.tokenizer()(" =aeo")["input_ids"]
attach_rows(model, tickets)
whole = replicate_rows(model)  # leave this out, and FSDP2 shards the rows too
for layer in model.model.layers:
    fully_shard(layer, ignored_params=whole)
fully_shard(model, ignored_params=whole)

optimizer = RowAdamW([get_rows(model).rows], lr=1e-1)
for batch in DataLoader(data, batch_size=4, sampler=DistributedSampler(data), collate_fn=default_data_collator):
    loss = model(**{name: values.to(device) for name, values in batch.items()}).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

rows = gather_rows(model)
if dist.get_rank() == 0:
    print(f"loss {loss.item():.3f}")
    save_rows_adapter(tickets, rows, output, vocab_size=model.config.vocab_size)
dist.destroy_process_group()

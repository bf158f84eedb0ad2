"""KS-Lottery in a transformers Trainer: Embed Tuning, the KS test, Partial Tuning.

On several processes: accelerate launch --config_file examples/accelerate_ddp.yaml examples/trainer.py
"""

import sys

import tiny
import torch
from transformers import TrainingArguments

from kslottery_fast import detach_rows, ks_select_rows, merge_rows
from kslottery_fast.integrations.monitor import TicketMonitor
from kslottery_fast.integrations.trainer import TicketTrainer

output = sys.argv[1] if len(sys.argv) > 1 else "runs/trainer"
model, dataset = tiny.model(), tiny.examples()


def arguments(stage: str) -> TrainingArguments:
    return TrainingArguments(
        f"{output}/{stage}",
        learning_rate=1e-1,
        max_steps=20,
        per_device_train_batch_size=4,
        logging_steps=5,
        save_steps=10,  # a checkpoint holds rows, optimizer state and tickets: kilobytes
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )


# 1. Embed Tuning: all rows that occur in the data train. The monitor logs how many are tickets by now.
monitor = TicketMonitor(every=5, stop_when_stable=True)
stage1 = TicketTrainer(
    model=model, args=arguments("embed"), train_dataset=dataset, tickets="active", callbacks=[monitor]
)
stage1.train()

# 2. The KS test: which rows were redistributed?
tickets = ks_select_rows(model, alpha=0.05)
print(tickets.summary())
print(f"tokens: {tickets.tokens(tiny.tokenizer())}")

# 3. Partial Tuning: back to the original model, train the tickets' rows alone.
detach_rows(model)
stage2 = TicketTrainer(model=model, args=arguments("partial"), train_dataset=dataset, tickets=tickets)
stage2.train()
if stage2.is_world_process_zero():
    merge_rows(model).save_pretrained(f"{output}/model")
stage2.accelerator.end_training()  # with several processes: a group that is still open can end a process by an error

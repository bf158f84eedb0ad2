"""Runs KS-Lottery with the Trainer of transformers: Embed Tuning, the KS test, then Partial Tuning of the tickets.

Run it as ``python examples/trainer.py [FOLDER]``, or on several processes as
``accelerate launch --config_file examples/accelerate_ddp.yaml examples/trainer.py [FOLDER]``. The checkpoints and the
model go to FOLDER (runs/trainer).
"""

import sys

import tiny
import torch
from transformers import TrainingArguments

from kslottery_fast import TicketTrainer, detach_rows, ks_select_rows, merge_rows
from kslottery_fast.integrations.monitor import TicketMonitor

output = sys.argv[1] if len(sys.argv) > 1 else "runs/trainer"
model, dataset = tiny.model(), tiny.examples()


def arguments(stage: str) -> TrainingArguments:
    return TrainingArguments(
        f"{output}/{stage}",
        learning_rate=1e-1,
        max_steps=20,
        per_device_train_batch_size=4,
        logging_steps=5,
        save_steps=10,  # a checkpoint holds the rows and their optimizer state, a few kilobytes
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )


# 1. Embed Tuning trains the rows of all tokens in the data. The monitor logs how many are tickets so far.
monitor = TicketMonitor(every=5, stop_when_stable=True)
stage1 = TicketTrainer(
    model=model, args=arguments("embed"), train_dataset=dataset, tickets="active", callbacks=[monitor]
)
stage1.train()

# 2. The KS test selects the rows whose values have another distribution than before.
tickets = ks_select_rows(model, alpha=0.05, tokenizer=tiny.tokenizer())
print(tickets.summary())
print(f"tokens: {tickets.token_texts}")

# 3. Partial Tuning starts again from the original model and trains only the rows of the tickets.
detach_rows(model)
stage2 = TicketTrainer(model=model, args=arguments("partial"), train_dataset=dataset, tickets=tickets)
stage2.train()
if stage2.is_world_process_zero():
    merge_rows(model).save_pretrained(f"{output}/model")
stage2.accelerator.end_training()  # closes the process group, which could otherwise end a process with an error

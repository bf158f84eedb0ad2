"""Trains the rows of a few tokens with the SFTTrainer of TRL, to which a mixin adds the argument ``tickets``.

Install TRL with ``pip install trl`` and run ``python examples/sft.py [FOLDER]``. The model goes to FOLDER/model
(runs/sft/model).
"""

import sys

import tiny
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from kslottery_fast import merge_rows
from kslottery_fast.integrations.trainer import TicketTrainerMixin


class TicketSFTTrainer(TicketTrainerMixin, SFTTrainer):
    """An SFTTrainer with the arguments of a TicketTrainer. The mixin comes first."""


output = sys.argv[1] if len(sys.argv) > 1 else "runs/sft"
model, tokenizer = tiny.model(), tiny.tokenizer()
arguments = SFTConfig(
    output,
    learning_rate=1e-1,
    max_steps=10,
    logging_steps=5,
    save_steps=10,
    max_length=24,
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
    bf16=torch.cuda.is_available(),
)
trainer = TicketSFTTrainer(
    model=model,
    args=arguments,
    train_dataset=Dataset.from_dict({"text": tiny.texts()}),
    processing_class=tokenizer,
    tickets=tokenizer(" =aeo")["input_ids"],
)
trainer.train()
merge_rows(model).save_pretrained(f"{output}/model")

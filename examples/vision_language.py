"""Teaches a vision-language model two words for what it sees. Their rows train in the input table and in the head.

Run it as ``python examples/vision_language.py [FOLDER]``. The trained model goes to FOLDER (runs/vision_language).
"""

import sys

import tiny
import torch
from transformers import TrainingArguments

from kslottery_fast import TicketTrainer, add_tokens, attach_rows, merge_rows

output = sys.argv[1] if len(sys.argv) > 1 else "runs/vision_language"
model, tokenizer = tiny.vision_language()  # its text model is not tied: a head without the new rows could not say them
bright, dark = add_tokens(model, tokenizer, ["<bright>", "<dark>"])

generator = torch.Generator().manual_seed(0)
images = torch.rand(32, 3, 8, 8, generator=generator)
images[::2] += 1.0
answers = [bright, dark] * 16
question = tokenizer("<s>" + "<image>" * 4 + "It is ")["input_ids"]
ids = torch.tensor([[*question, answer] for answer in answers])
labels = torch.full_like(ids, -100)
labels[:, -1] = ids[:, -1]
names = ("pixel_values", "input_ids", "labels")
data = [dict(zip(names, example, strict=True)) for example in zip(images, ids, labels, strict=True)]


def accuracy() -> float:
    """Return how often the right word has the largest logit of all tokens."""
    with torch.no_grad():
        asked = {"input_ids": ids[:, :-1].to(model.device), "pixel_values": images.to(model.device)}
        return (model(**asked).logits[:, -1].argmax(dim=-1).cpu() == ids[:, -1]).float().mean().item()


before = accuracy()
attach_rows(model, [bright, dark])
arguments = TrainingArguments(
    f"{output}/checkpoints",
    learning_rate=5e-2,
    max_steps=60,
    per_device_train_batch_size=16,
    logging_steps=20,
    save_strategy="no",
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
)
TicketTrainer(model=model, args=arguments, train_dataset=data).train()
after = accuracy()
print(f"accuracy: {before:.0%} -> {after:.0%}")

merge_rows(model).save_pretrained(output)
tokenizer.save_pretrained(output)

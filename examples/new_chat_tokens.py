"""Teaches a model the new tokens of a chat template, with the SFTTrainer of TRL. Only their rows train.

Install TRL with ``pip install trl`` and run ``python examples/new_chat_tokens.py [FOLDER]``. The model and the
tokenizer go to FOLDER/model (runs/new_chat_tokens/model).
"""

import sys

import tiny
import torch
from datasets import Dataset
from torch.nn import functional as F
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from kslottery_fast import add_tokens, attach_rows, merge_rows
from kslottery_fast.integrations.trainer import TicketTrainerMixin


class TicketSFTTrainer(TicketTrainerMixin, SFTTrainer):
    """An SFTTrainer with the arguments of a TicketTrainer. The mixin comes first."""


output = sys.argv[1] if len(sys.argv) > 1 else "runs/new_chat_tokens"
model, tokenizer = tiny.model(), tiny.tokenizer()
new = add_tokens(model, tokenizer, ["<|user|>", "<|assistant|>", "<|end|>"], special=True)
tokenizer.chat_template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
chats = [
    [{"role": "user", "content": word}, {"role": "assistant", "content": translation}]
    for word, translation in tiny.PAIRS
]


def nll_of_new_tokens() -> float:
    """Return the mean NLL of the new tokens in the chats."""
    texts = [str(tokenizer.apply_chat_template(chat, tokenize=False)) for chat in chats]
    ids = tokenizer(texts, return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device)).logits[:, :-1].cpu()
    labels = ids[:, 1:]
    return (
        F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")[torch.isin(labels, torch.tensor(new))]
        .mean()
        .item()
    )


before = nll_of_new_tokens()
attach_rows(model, new)  # in the input table, and in the head: the model is to say "<|end|>" too
arguments = SFTConfig(
    output,
    learning_rate=3e-2,
    max_steps=30,
    logging_steps=10,
    save_strategy="no",
    max_length=32,
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
    bf16=torch.cuda.is_available(),
)
trainer = TicketSFTTrainer(
    model=model,
    args=arguments,
    train_dataset=Dataset.from_dict({"messages": chats * 8}),
    processing_class=tokenizer,
    supervised_logits_only=True,  # the loss of SFTTrainer itself would copy the whole head in every step
)
trainer.train()
after = nll_of_new_tokens()
print(f"NLL of the new tokens: {before:.2f} -> {after:.2f}")

merge_rows(model).save_pretrained(f"{output}/model")
tokenizer.save_pretrained(f"{output}/model")

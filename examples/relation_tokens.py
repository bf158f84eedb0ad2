"""Teaches relation tokens to a model of sentence-transformers. Only their rows train.

Install it with ``pip install sentence-transformers`` and run ``python examples/relation_tokens.py [FOLDER]``. The
trained model goes to FOLDER/model (runs/relation_tokens/model).
"""

import sys

import tiny
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from kslottery_fast import RowAdamW, add_tokens, attach_rows, get_rows, merge_rows

output = sys.argv[1] if len(sys.argv) > 1 else "runs/relation_tokens"
pairs = [
    ("<opposite> hot", "cold"),
    ("<opposite> big", "small"),
    ("<opposite> old", "new"),
    ("<plural> cat", "cats"),
    ("<plural> dog", "dogs"),
    ("<plural> mouse", "mice"),
]

model = tiny.sentence_transformer(f"{output}/base")
relations = add_tokens(model, model.tokenizer, ["<opposite>", "<plural>"], init="pieces")
attach_rows(model, relations)  # of the BERT inside

loss_of = MultipleNegativesRankingLoss(model)
queries = model.preprocess([query for query, _ in pairs])
answers = model.preprocess([answer for _, answer in pairs])
optimizer = RowAdamW([get_rows(model).rows], lr=3e-2, weight_decay=0.0)
losses = []
model.eval()  # without dropout
for _ in range(40):
    optimizer.zero_grad()
    loss = loss_of([dict(queries), dict(answers)], torch.empty(0))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss: {losses[0]:.2f} -> {losses[-1]:.2f}")

merge_rows(model).save(f"{output}/model")

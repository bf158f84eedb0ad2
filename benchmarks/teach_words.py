"""Can a model learn five made-up words from 25 sentences, when only the rows of their tokens train?

    python -m benchmarks.teach_words [--model smollm2-135m] [--steps 40] [--output runs/teach_words.json]

Each word becomes one token. Its row starts from the mean of the table and trains in the input table and in the output
head, which are one table in a tied model. Nothing else of the model changes. Three models are scored on 20 other
sentences with the words:

untrained   the words are added and their rows are the mean of the table
swapped     the control: the same training, but each word has the sentences of the next one. It also sees every word as
            a noun, in these sentences. What it gains is not the meaning of the words
trained     each word has its own sentences

"choice" is how often a sentence is most probable with its own word, of the five (20% by chance). "NLL after" is the
negative log-likelihood of the tokens after the word, which the model reads, and "NLL of word" that of the word itself,
which the model says. The model also continues "A florn is a kind of", greedily.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kslottery_fast import RowAdamW, add_tokens, attach_rows, detach_rows, embedding_table
from kslottery_fast.base.files import write_json

from .made_up_words import HELD_OUT, PROMPTS, TRAINING

WORDS = list(TRAINING)


@dataclass(frozen=True)
class Score:
    """What a model does on the held-out sentences."""

    choice: float
    nll_after: float
    nll_of_word: float
    completions: list[str]
    loss: float | None = None  # of the last step of training
    seconds: float = 0.0  # of training


def swapped(sentences: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return sentences in which each word stands where the next word did."""
    following = dict(zip(WORDS, [*WORDS[1:], WORDS[0]], strict=True))
    return {word: [text.replace(following[word], word) for text in sentences[following[word]]] for word in WORDS}


def encode(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    """Return ids [n, T] padded on the right, their attention mask, and labels, which are -100 at padding."""
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    start = tokenizer.bos_token_id
    rows = [[start, *row] if start is not None else row for row in rows]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def train(model: nn.Module, tokenizer: Any, sentences: dict[str, list[str]], *, steps: int, lr: float) -> float:
    """Train the attached rows on batches with one sentence of each word. Returns the last loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]  # of both tables, if untied
    optimizer = RowAdamW(trained, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    batches = [encode(tokenizer, list(texts)) for texts in zip(*sentences.values(), strict=True)]
    loss = torch.tensor(0.0)
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()


@torch.no_grad()
def score(model: nn.Module, tokenizer: Any, ids: list[int]) -> Score:
    """Score the held-out sentences, each with every word in the place of its own."""
    right, after, said = [], [], []
    for own, word in enumerate(WORDS):
        for text in HELD_OUT[word]:
            # The sentences have one length, since they differ in one token.
            batch = encode(tokenizer, [text.replace(word, other) for other in WORDS])
            losses = _token_losses(model, batch)
            right.append(int(losses.sum(dim=1).argmin()) == own)
            place = batch["input_ids"][own].tolist().index(ids[own])
            said.append(losses[own, place - 1].item())
            after.extend(losses[own, place:].tolist())
    completions = [_complete(model, tokenizer, PROMPTS[word]) for word in WORDS]
    return Score(sum(right) / len(right), sum(after) / len(after), sum(said) / len(said), completions)


def _token_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The negative log-likelihood [n, T - 1] of each token but the first."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")


def _complete(model: Any, tokenizer: Any, prompt: str, length: int = 8) -> str:
    ids = encode(tokenizer, [prompt])
    made = model.generate(
        input_ids=ids["input_ids"],
        attention_mask=ids["attention_mask"],
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    text: str = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return prompt + text.replace("\n", " ")


def study(model: Any, tokenizer: Any, *, steps: int, lr: float) -> dict[str, Score]:
    """Add the words to a model and its tokenizer, train both arms, and return the scores of the three models."""
    ids = add_tokens(model, tokenizer, WORDS)
    table = embedding_table(model).detach().clone()
    scores = {"untrained": score(model, tokenizer, ids)}
    for name, sentences in (("swapped", swapped(TRAINING)), ("trained", TRAINING)):
        attach_rows(model, ids)
        start = time.perf_counter()
        loss = train(model, tokenizer, sentences, steps=steps, lr=lr)
        seconds = time.perf_counter() - start
        scores[name] = Score(**(asdict(score(model, tokenizer, ids)) | {"loss": loss, "seconds": seconds}))
        detach_rows(model)  # the next arm starts from the same rows
    assert torch.equal(table, embedding_table(model)), "a row that does not train has moved"
    return scores


def print_scores(scores: dict[str, Score]) -> None:
    """Print a table, and the completions before and after."""
    print(f"{'model':<12}{'choice':>8}{'NLL after':>12}{'NLL of word':>13}{'last loss':>11}{'train s':>9}")
    for name, each in scores.items():
        loss = "" if each.loss is None else f"{each.loss:.3f}"
        seconds = f"{each.seconds:.0f}" if each.seconds else ""
        print(f"{name:<12}{each.choice:>8.0%}{each.nll_after:>12.3f}{each.nll_of_word:>13.3f}{loss:>11}{seconds:>9}")
    for name, each in scores.items():
        print(f"\n{name}:", *each.completions, sep="\n  ")


def main() -> None:
    """Run the study on a named model and print it."""
    from kslottery_fast.lab.models import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--output", help="a JSON file for the numbers")
    options = parser.parse_args()
    loaded = load_model(options.model, dtype="float32")
    scores = study(loaded.model, loaded.tokenizer, steps=options.steps, lr=options.lr)
    print_scores(scores)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        settings = {"model": options.model, "steps": options.steps, "lr": options.lr}
        write_json(options.output, settings | {name: asdict(each) for name, each in scores.items()})


if __name__ == "__main__":
    main()

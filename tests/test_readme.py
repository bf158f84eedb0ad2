"""The README tells the truth: its Python runs, its commands and files exist."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kslottery_fast.evaluation.encoding import Example, collate, encode

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_the_python_examples_run_one_after_the_other(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    model = tiny_llama(tied=True)
    before = model.get_input_embeddings().weight.detach().clone()
    after = before.clone()
    examples = [Example("English: the house\nSpanish:", " la casa"), Example("English: red\nSpanish:", " rojo")] * 8
    dataset = [encode(tiny_tokenizer, example) for example in examples]
    shifted = sorted(set(dataset[0]["input_ids"]) - {2})[:3]  # 2 pads, and the padding row does not train
    after[shifted] += 2.0
    names = {
        "emb_before": before,
        "emb_after": after,
        "model": model,
        "embed_tuned_model": after,
        "original_model": before.clone(),
        "dataset": dataset,
        "catalan_tickets": [40, 41],
        "batch": {"input_ids": torch.tensor([dataset[0]["input_ids"][:8]] * 3), "pad_token_id": 2},
        "collator": partial(collate, pad_token_id=2),
    }
    assert len(BLOCKS) >= 3
    for block in BLOCKS:
        # A short training proves as much as a long one; nothing else of the text is changed.
        exec(compile(re.sub(r"max_steps=\d+", "max_steps=2", block), str(README), "exec"), names)
    assert sorted(names["tickets"].token_ids.tolist()) == names["winners"] == shifted
    assert torch.equal(names["original_model"], after)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").get_input_embeddings().weight
    moved = (tuned != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == shifted
    assert not torch.equal(tuned[moved], after[moved])


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", README.read_text(encoding="utf-8"), re.MULTILINE)))
)
def test_every_make_target_that_the_readme_names_exists(target):
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8")))))
def test_every_local_link_of_the_readme_leads_somewhere(link):
    assert link.startswith("https://") or (README.parent / link).exists(), link

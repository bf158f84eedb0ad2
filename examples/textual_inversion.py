"""Teaches a new concept to the text encoder of a CLIP from a few images (textual inversion). One row trains.

Run it as ``python examples/textual_inversion.py [FOLDER]``. The row goes to FOLDER/learned_embeds.safetensors
(runs/textual_inversion), in the form that ``load_textual_inversion`` of diffusers reads. For Stable Diffusion, attach
the row to ``pipe.text_encoder``, a CLIPTextModel, and use its denoising loss in place of the similarity below.
"""

import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from kslottery_fast import RowAdamW, add_tokens, attach_rows, get_rows

output = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/textual_inversion")
model: Any  # transformers declares that features may be tuples
model, tokenizer = tiny.clip()
images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # four photos of one cat
prompts = ["a photo of <my-cat>", "<my-cat> on a chair", "a drawing of <my-cat>"]

token = add_tokens(model, tokenizer, "<my-cat>", init={"<my-cat>": "cat"})  # starts as what "cat" is read as
attach_rows(model, token)  # of the text model inside; everything else is frozen
batch = tokenizer([f"{prompt}{tokenizer.eos_token}" for prompt in prompts], return_tensors="pt", padding=True)
with torch.no_grad():
    target = model.get_image_features(pixel_values=images).pooler_output.mean(dim=0, keepdim=True)


def similarity() -> torch.Tensor:
    """Return the mean cosine of the prompts with the images."""
    features = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    return F.cosine_similarity(features, target).mean()


optimizer = RowAdamW([get_rows(model).rows], lr=1e-2, weight_decay=0.0)
before = similarity().item()
for _ in range(50):
    optimizer.zero_grad()
    (1 - similarity()).backward()
    optimizer.step()
after = similarity().item()
print(f"similarity of the prompts with the images: {before:.2f} -> {after:.2f}")

output.mkdir(parents=True, exist_ok=True)
save_file({"<my-cat>": get_rows(model).rows[0].detach().clone()}, output / "learned_embeds.safetensors")

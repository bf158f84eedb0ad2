"""A training step on a GPU with attached rows, compared with PEFT's TrainableTokens and with the frozen model.

The model is shaped like a LLaMA of few layers, in bfloat16, with the table of Llama 3. Its table, of which PEFT makes a
copy in every forward, then takes a part of the step as in a model of full depth with a smaller batch. transformers and
PEFT are imported when the row is prepared, so all other rows run where they are missing.
"""

from __future__ import annotations

from typing import Any

import torch

from .measure import Contender
from .workloads import Spec, Workload

STEP = "training step"
FOLLOWS, UNTIED = "tied, head follows", "untied"
CASES = (FOLLOWS, UNTIED)
TRAINED, LAYERS, SEED = 64, 2, 20_240_202


def prepare(spec: Spec, tokens: tuple[int, int], where: torch.device) -> Workload:
    """Ours, PEFT and the frozen model, on the same batches."""
    from . import training_workloads as workloads

    (V, width), tied = spec.shape, spec.case.startswith("tied")
    ids = workloads.tokens(V, TRAINED if V > TRAINED else V // 4)
    generator = torch.Generator(where).manual_seed(SEED)
    batches = [torch.randint(V, tokens, generator=generator, device=where) for _ in range(4)]
    for batch in batches:
        batch[:, ::2] = torch.tensor(ids, device=where)[torch.randint(len(ids), batch[:, ::2].shape, device=where)]
    contenders = {}
    for name in ("ours", "floor", "peft"):
        torch.manual_seed(SEED)
        model, optimizer = workloads.MAKE[name](_llama(V, width, tied, where), ids, workloads.role(spec.case))
        run = workloads.step(model, optimizer, batches)
        contenders["floor: frozen model" if name == "floor" else name] = Contender(run, waits=True)
    return Workload(contenders, None)


def _llama(V: int, width: int, tied: bool, where: torch.device) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=V,
        hidden_size=width,
        intermediate_size=7 * width // 2,
        num_hidden_layers=LAYERS,
        num_attention_heads=max(1, width // 128),
        num_key_value_heads=max(1, width // 512),
        max_position_embeddings=2_048,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    with where:
        return LlamaForCausalLM(config).to(torch.bfloat16)

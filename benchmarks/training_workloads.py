"""A training step and the forward of one token with attached rows, compared with the frozen model, PEFT, dense AdamW.

The model is an 8-layer LLaMA of SmolLM2's width with random weights. In the floor nothing trains but one scalar, which
is added to the embeddings. It has the same forward and backward, and almost no optimizer. The floor of rows of both
tables is the same, since a frozen head gives the hidden states their gradient too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from peft import TrainableTokensConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from kslottery_fast import RowAdamW, attach_rows, get_rows, ks_select_rows
from kslottery_fast.base.options import OutputRole

from .measure import Contender
from .workloads import Spec, Suite, Workload

WIDTH, LAYERS, K, BATCH, SEED = 576, 8, 64, (8, 32), 20_240_202
ACTIVE = 2_253  # rows of Embed Tuning in `make demo`; METHOD.md counts as many
TABLES = (49_152, 128_256)
CASES = ("tied, head follows", "tied, head frozen", "untied")
BOTH, BOTH_TABLES = "untied, rows of both tables", (32_000, 128_256)  # rows of the same tokens in each
ROLES: dict[str, OutputRole] = {"tied, head follows": "tied", BOTH: "own"}
STEP, TOKEN, MONITOR = "training step", "one token", "TicketMonitor"
LR = 1e-3


def suite(*, quick: bool = False) -> Suite:
    """All rows of the table about whole models."""
    models = cases(quick=quick)
    specs = [Spec(op, (V, WIDTH), torch.float32, case) for op in (STEP, TOKEN) for V, case in models]
    specs.append(Spec(MONITOR, (ACTIVE, WIDTH), torch.float32, "a check every 10 steps"))
    return Suite(specs, prepare)


def cases(*, quick: bool = False) -> list[tuple[int, str]]:
    """The size of the table and the case of every model. ``quick`` leaves out the larger tables."""
    sizes = slice(1) if quick else slice(None)
    return [(V, case) for V in TABLES[sizes] for case in CASES] + [(V, BOTH) for V in BOTH_TABLES[sizes]]


def role(case: str) -> OutputRole:
    """What the output head does about the rows, as ``attach_rows`` calls it."""
    return ROLES.get(case, "auto")


def prepare(spec: Spec) -> Workload:
    """The models and the contenders of one row."""
    if spec.op == MONITOR:
        return _monitor(spec)
    V, tied = spec.shape[0], spec.case.startswith("tied")
    names = ["ours", "floor", *peers_of(spec.case, spec.op)]
    base, ids = llama(V, tied=tied), tokens(V)
    batches = [batch(V, ids, seed) for seed in range(4)]
    contenders = {}
    for name in names:
        model = copy.deepcopy(base) if name != names[-1] else base
        trained = MAKE[name](model, ids, role(spec.case))
        label = "floor: frozen model" if name == "floor" else name
        run = step(*trained, batches) if spec.op == STEP else one_token(trained[0], ids)
        contenders[label] = Contender(run)
    return Workload(contenders, None, 1 if spec.op == STEP else 8)


def peers_of(case: str, op: str = STEP) -> list[str]:
    """Which peers a case has.

    In a tied model PEFT's head always follows, and a dense table is the head. Dense AdamW without a mask on both tables
    is left out, since the mask costs little beside it.
    """
    if case == "tied, head frozen":
        return []
    if op == TOKEN:
        return ["peft"]
    return ["peft", "mask"] if case == BOTH else ["peft", "mask", "dense"]


def llama(V: int, *, tied: bool) -> LlamaForCausalLM:
    """A random LLaMA of SmolLM2's width, float32."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=WIDTH,
        intermediate_size=1_536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def tokens(V: int, k: int = K) -> list[int]:
    """The rows that train. Token 0 is not used for padding, so any token will do."""
    return torch.randperm(V, generator=torch.Generator().manual_seed(SEED))[:k].tolist()


def batch(V: int, ids: list[int], seed: int) -> Tensor:
    """Token ids [8, 32]. About half of them train."""
    generator = torch.Generator().manual_seed(seed)
    trained = torch.tensor(ids)[torch.randint(len(ids), BATCH, generator=generator)]
    half = torch.rand(BATCH, generator=generator) < 0.5
    return torch.where(half, trained, torch.randint(V, BATCH, generator=generator))


def _ours(model: Any, ids: list[int], output: OutputRole) -> tuple[nn.Module, torch.optim.Optimizer]:
    attach_rows(model, ids, output=output)
    return model, RowAdamW(_trained(model), lr=LR)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _floor(model: Any, ids: list[int], output: OutputRole) -> tuple[nn.Module, torch.optim.Optimizer]:
    del ids, output
    model.requires_grad_(False)
    scalar = nn.Parameter(torch.zeros((), device=model.get_input_embeddings().weight.device))
    model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, out: out + scalar)
    return model, torch.optim.SGD([scalar], lr=LR)


def _peft(model: Any, ids: list[int], output: OutputRole) -> tuple[nn.Module, torch.optim.Optimizer]:
    targets = ["embed_tokens", "lm_head"] if output == "own" else ["embed_tokens"]
    wrapped = get_peft_model(model, TrainableTokensConfig(token_indices=ids, target_modules=targets))
    return wrapped, torch.optim.AdamW(_trained(wrapped), lr=LR, weight_decay=0.0, fused=True)


def _dense(model: Any, ids: list[int], output: OutputRole) -> tuple[nn.Module, torch.optim.Optimizer]:
    del ids
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    if output == "own":
        model.get_output_embeddings().weight.requires_grad_(True)
    return model, torch.optim.AdamW(_trained(model), lr=LR, weight_decay=0.0, fused=True)


def _mask(model: Any, ids: list[int], output: OutputRole) -> tuple[nn.Module, torch.optim.Optimizer]:
    """What people write by hand: whole tables train, and a hook sets the gradient of the other rows to zero."""
    model, optimizer = _dense(model, ids, output)
    for table in _trained(model):
        mask = torch.zeros(len(table), 1)
        mask[ids] = 1.0
        table.register_hook(functools.partial(torch.mul, mask))
    return model, optimizer


MAKE = {"ours": _ours, "floor": _floor, "peft": _peft, "dense": _dense, "mask": _mask}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> Callable[[int], float]:
    """One step on the next batch. Return its loss."""
    model.train()

    def run(turn: int) -> float:
        ids = batches[turn % len(batches)]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run


def one_token(model: nn.Module, ids: list[int]) -> Callable[[int], Tensor]:
    """The logits of one token, as generation computes them."""
    model.eval()
    inputs = torch.tensor(ids)[:, None, None]

    @torch.no_grad()
    def run(turn: int) -> Tensor:
        return model(input_ids=inputs[turn % len(inputs)]).logits

    return run


def _monitor(spec: Spec) -> Workload:
    """What a check of the rows of Embed Tuning adds to each of ten steps, and the step."""
    V = TABLES[0]
    base, ids = llama(V, tied=True), tokens(V, spec.shape[0])
    model, optimizer = _ours(base, ids, "auto")
    with torch.no_grad():
        get_rows(model).rows.add_(torch.randn(spec.shape) * 0.02)
    run = step(model, optimizer, [batch(V, ids, seed) for seed in range(4)])
    return Workload({"ours": Contender(lambda turn: ks_select_rows(model), 0.1), "step": Contender(run)}, None)

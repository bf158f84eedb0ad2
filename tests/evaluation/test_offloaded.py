"""A model whose weights accelerate keeps elsewhere is evaluated as the same model in memory is."""

import accelerate
import pytest
import torch

from kslottery_fast.evaluation.certify import next_token_predictions
from kslottery_fast.evaluation.effects import position_effects, ticket_effects
from kslottery_fast.evaluation.encoding import Example, collate, encode
from kslottery_fast.evaluation.evaluate import evaluate
from kslottery_fast.evaluation.generation import device_of

SOURCES = ["The house", "Save"]
EXAMPLES = [Example(f"English: {source}\nSpanish:", f" {source[::-1]}") for source in SOURCES]
OPTIONS = {"n_bootstrap": 5, "batch_size": 2}


@pytest.fixture
def pair(tiny_llama):
    """The same weights twice: in memory, and offloaded."""
    offloaded = tiny_llama()
    accelerate.cpu_offload(offloaded, execution_device="cpu")
    assert next(offloaded.parameters()).is_meta
    return tiny_llama(), offloaded


def test_evaluation_and_predictions_of_an_offloaded_model_are_those_of_the_model_in_memory(pair, tiny_tokenizer):
    plain, offloaded = (evaluate(model, tiny_tokenizer, EXAMPLES, max_new_tokens=4, **OPTIONS) for model in pair)
    assert plain == offloaded
    batches = [collate([encode(tiny_tokenizer, example) for example in EXAMPLES], 2)]
    plain, offloaded = (next_token_predictions(model, batches) for model in pair)
    assert torch.equal(plain.predicted, offloaded.predicted)
    assert torch.equal(plain.margin, offloaded.margin)


def test_effects_of_rows_of_an_offloaded_model_are_those_of_the_model_in_memory(pair, tiny_tokenizer):
    ids = torch.tensor(tiny_tokenizer(SOURCES[0])["input_ids"][-2:])
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    plain, offloaded = (ticket_effects(m, tiny_tokenizer, EXAMPLES, ids, rows, shown=1, **OPTIONS) for m in pair)
    assert plain == offloaded
    assert plain["tickets"][0]["alone"]["value"] != 0
    plain, offloaded = (position_effects(m, tiny_tokenizer, EXAMPLES, SOURCES, ids, rows, **OPTIONS) for m in pair)
    assert plain == offloaded
    assert plain["gain"]["value"] != 0


def test_inputs_go_to_the_device_of_the_hook_on_the_parameter_or_on_a_block_around_it():
    block = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta")))
    hook = accelerate.hooks.AlignDevicesHook(execution_device=torch.device("cpu", 0), offload=True)
    block[0]._hf_hook = accelerate.hooks.SequentialHook(accelerate.hooks.ModelHook(), hook)
    assert device_of(block) == torch.device("cpu", 0)
    block[0][0]._hf_hook = accelerate.hooks.AlignDevicesHook(execution_device="cpu", offload=True)
    assert device_of(block) == torch.device("cpu")

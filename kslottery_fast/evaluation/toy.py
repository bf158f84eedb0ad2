"""A model so small that every example of this package runs in milliseconds, and without a download."""

import string
from typing import Any

import torch
from torch import nn

END = "."
"""The text of the end-of-text token."""


def alphabet_model() -> tuple[nn.Module, Any]:
    """Make a LLaMA that predicts the alphabet, and its tokenizer.

    Every letter is a token. After each letter the model expects the next one with a probability of 88%, and after "z"
    the end of the text. It is an ordinary ``LlamaForCausalLM`` with 28 embedding rows, in evaluation mode.

    Returns
    -------
    model : torch.nn.Module
        The language model.
    tokenizer : transformers.PreTrainedTokenizerFast
        Its tokenizer. The space has the id 0, the letters have the ids 1 to 26, and the end of the text has the id 27.

    Examples
    --------
    >>> model, tokenizer = alphabet_model()
    >>> tokenizer("abc")["input_ids"]
    [1, 2, 3]
    >>> logits = model(torch.tensor([[1, 2, 3]])).logits
    >>> tokenizer.decode(logits[0].argmax(-1))
    'bcd'
    """
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(" " + string.ascii_lowercase + END)}
    backend = Tokenizer(models.BPE(letters, []))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )
    size, end = len(letters), letters[END]
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        model: Any = LlamaForCausalLM(config).eval()
    layer = model.model.layers[0]
    with torch.no_grad():
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.zero_()  # the layer adds nothing: the next token depends on the last one alone
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(torch.eye(size).roll(1, dims=0))
    return model, tokenizer

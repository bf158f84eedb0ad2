"""Next-token logits at the supervised positions only.

A fine-tuning batch supervises the target side, but a causal language model computes V logits for every position. Here
only the hidden states of the supervised positions reach the output head. The numbers are the same, for a fraction of
the work and a memory of [n, V] in place of [B, T, V].
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_model, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.overlay import RowHead

IGNORE_INDEX = -100
"""The label of a position that is not supervised, as in transformers and torch's cross entropy."""


def supervised_logits(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of the supervised positions of one batch.

    Parameters
    ----------
    model : nn.Module
        A transformers model with an output head: decoder-only, encoder-decoder, or a masked language model.
    batch : mapping
        ``input_ids`` [B, T], usually ``attention_mask`` [B, T], and ``labels`` [B, T] with -100 at positions that are
        not supervised. Labels are aligned with the inputs, as transformers expects them. The shift by one that a
        decoder-only model needs happens here.

    Returns
    -------
    tuple of torch.Tensor
        The logits [n, V] in the dtype of the model and the targets [n] int64, in row-major order of (example,
        position). n is the number of supervised positions.

    Raises
    ------
    InputError
        The batch has no labels. The model has no output head. An encoder-decoder model needs ``decoder_input_ids`` and
        cannot derive them. The batch is mixed and the head follows the rows. The model was compiled and has run before.
    TypeError
        ``model`` is not a model, or ``batch`` is not a mapping.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes))
    >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[-100, -100, 3]])}
    >>> logits, targets = supervised_logits(model, batch)
    >>> logits.shape, targets
    (torch.Size([1, 10]), tensor([3]))
    """
    check_model(model)
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch is {shown(batch)}: expected a mapping with input_ids and labels")
    labels = batch.get("labels")
    if labels is None:
        raise InputError("batch has no 'labels'; give int64 [B, T] with -100 at positions that are not supervised")
    whole: Any = getattr(model, "module", model)  # the model that DistributedDataParallel and the like wrap
    head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    if head is None:
        raise InputError(f"{type(whole).__name__} has no output head; load it as a causal or seq2seq language model")
    if isinstance(head, RowHead) and head.row_sets.mixture is not None:
        raise InputError(
            "supervised_logits joins the positions of all examples, and a head that follows mixed_rows needs to know "
            "which example each belongs to; call model(**batch) for a mixed batch, or attach with output='frozen'"
        )
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if getattr(getattr(whole, "config", None), "is_encoder_decoder", False):
        if "decoder_input_ids" not in inputs:
            if not hasattr(whole, "prepare_decoder_input_ids_from_labels"):
                raise InputError(
                    f"{type(whole).__name__} does not derive decoder_input_ids from labels; put them into the batch"
                )
            inputs["decoder_input_ids"] = whole.prepare_decoder_input_ids_from_labels(labels=labels)
        targets = labels
    elif getattr(whole, "loss_type", None) == "ForMaskedLM":
        targets = labels  # it predicts the token at the position itself
    else:
        # Position t predicts token t + 1. The last position has nothing to predict.
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    positions = (targets.reshape(-1) != IGNORE_INDEX).nonzero().squeeze(1)

    def gather(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)[None], *arguments[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    if logits.shape[:-1] != (1, len(positions)):
        raise InputError(
            "model was compiled and has run before, and its compiled code ignores the hook that leaves positions out; "
            "pass the model itself, uncompiled, or call torch.compiler.reset() before"
        )
    return logits.squeeze(0), targets.reshape(-1).index_select(0, positions)

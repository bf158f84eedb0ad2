"""What single rows do to a model's predictions."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kslottery_fast.base.arguments import check_integer, check_model, check_tokenizer
from kslottery_fast.base.options import SharedRole
from kslottery_fast.base.tokenizer import Tokenizer
from kslottery_fast.rows.token_ids import TokenIds

from .checks import check_list
from .encoding import Example
from .intervals import bootstrap_interval
from .likelihood import TargetNll, nll
from .positions import PARTS, position_effects, prompt_parts, template_tokens
from .worn_rows import check_measuring, check_rows, switched, wearing

__all__ = ["PARTS", "position_effects", "prompt_parts", "switched", "template_tokens", "ticket_effects", "wearing"]


def ticket_effects(
    model: nn.Module,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    token_ids: TokenIds,
    rows: torch.Tensor,
    *,
    shown: int,
    output: SharedRole = "auto",
    batch_size: int = 32,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure the effect of each of the first rows on NLL: transferred alone, and left out of all rows.

    Parameters
    ----------
    model : torch.nn.Module
        A decoder-only transformers model without attached rows, also offloaded by accelerate.
    tokenizer : transformers tokenizer
        The model's own.
    examples : sequence of Example
        Held-out prompts and targets, at least one.
    token_ids : TokenIds
        k token ids, Tickets, the path of a ticket file, or token strings.
    rows : tensor [k, d]
        Rows that are copied into the model. Nothing trains.
    shown : int
        How many of the rows, from the first on, are measured one by one.
    output : {"auto", "frozen", "tied"}
        Role of a tied table, see :func:`kslottery_fast.attach_rows`.
    batch_size : int
        Sentences in a batch.
    n_bootstrap, seed : int
        Number of resamples and seed of the bootstrap over sentences.
    progress : callable, optional
        Called with (evaluations done, evaluations).

    Returns
    -------
    dict
        ``nothing`` and ``all`` hold the NLL with none and with all of the rows, see :meth:`TargetNll.to_dict`.
        ``tickets`` holds for each row its ``token_id`` and two differences in nats per token with paired 95% intervals
        over sentences. ``alone`` is the NLL without any row minus the NLL with this row alone. ``left_out`` is the NLL
        with all other rows minus the NLL with all rows. A positive difference means that the row helps.

    Raises
    ------
    InputError
        The rows do not fit the token ids and the model, or :func:`~kslottery_fast.evaluation.likelihood.nll` refuses an
        argument.
    TypeError
        An argument has the wrong type.

    Examples
    --------
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> row_of_a = model.get_input_embeddings().weight[[1]]
    >>> found = ticket_effects(model, tokenizer, [Example("x", "bc")], [24], row_of_a, shown=1)  # "x" now reads as "a"
    >>> round(found["tickets"][0]["alone"]["value"], 2), found["tickets"][0]["left_out"]["high"] > 0
    (1.76, True)
    """
    check_model(model)
    check_tokenizer(tokenizer)
    examples = check_list(examples, Example, "examples", ", e.g. Example('Spanish:', ' casa')")
    ids, values = check_rows(model, token_ids, rows, tokenizer)
    check_integer(shown, "shown", 0)
    check_measuring(output, batch_size, n_bootstrap, seed, progress)
    total, done = 2 * min(shown, len(ids)) + 2, itertools.count(1)
    options: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed}
    every = ids.argsort()

    def measure(places: torch.Tensor) -> TargetNll:
        with wearing(model, ids[places], values[places], output=output):
            result = nll(model, tokenizer, examples, batch_size=batch_size, **options)
        if progress:
            progress(next(done), total)
        return result

    def gain(worse: TargetNll, better: TargetNll) -> dict[str, float]:
        table = list(zip(worse.sentence_nll, better.sentence_nll, worse.sentence_tokens, strict=True))
        return bootstrap_interval(table, lambda s: (s[0] - s[1]) / s[2], **options).to_dict()

    nothing, everything = measure(every[:0]), measure(every)
    effects = [
        {
            "token_id": token,
            "alone": gain(nothing, measure(every[every == place])),
            "left_out": gain(measure(every[every != place]), everything),
        }
        for place, token in enumerate(ids[:shown].tolist())
    ]
    return {"nothing": nothing.to_dict(), "all": everything.to_dict(), "tickets": effects}

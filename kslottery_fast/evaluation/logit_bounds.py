"""A sound criterion of agreement: how far the logits can move when rows move by the distances that they moved.

The embed-tuned model and a transfer model read other vectors where a text holds a row that moved and was not
transferred. From the L2 distances of these rows follows, layer by layer, how far the final hidden state can move, and
from that, how far the lead of the predicted token over any other can fall
(:mod:`~kslottery_fast.evaluation.propagation`). If it stays positive, both models predict the same token.

The conditions: a LLaMA with SiLU, the same output head and the same other weights in both models, exact arithmetic. The
bound holds for every change of the rows by these distances, in whatever direction, and so it is much larger than what a
particular change does. Distances in D would not do: a row with permuted coordinates has D = 0.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kslottery_fast.base.arguments import check_model, shown
from kslottery_fast.base.errors import InputError
from kslottery_fast.rows.tables import input_embedding, table_shape
from kslottery_fast.rows.token_ids import TokenIds

from .checks import check_batches, check_progress, check_share
from .generation import device_of, inference
from .logits import supervised_logits
from .propagation import LayerBound, Seen, norm_moves
from .words import counted
from .worn_rows import check_rows

_LINEAR = re.compile(r"(^lm_head|\.(q|k|v|o|gate|up|down)_proj)$")
_ROWS = 1 << 22  # float64 numbers of [n, V] held at once, several times: 32 MiB each


@dataclass(frozen=True, eq=False, repr=False)
class MarginBounds:
    """How far logits can move at N positions, in the order of the predictions.

    Attributes
    ----------
    predicted, runner_up : Tensor
        int64 [N], the tokens with the largest and the second largest logit.
    margin : Tensor
        float64 [N], by how much the first logit exceeds the second.
    bound : Tensor
        float64 [N], a bound on the change of this margin.
    slack : Tensor
        float64 [N], the least that is left of the lead of the predicted token over any other token. Where it is
        positive, the prediction cannot change.

    Examples
    --------
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> MarginBounds(torch.tensor([3, 4]), torch.tensor([1, 1]), one, one / 2, torch.tensor([0.5, -1.0]))
    MarginBounds(1 of 2 positions certified)
    """

    predicted: Tensor
    runner_up: Tensor
    margin: Tensor
    bound: Tensor
    slack: Tensor

    def __len__(self) -> int:
        return len(self.predicted)

    def __repr__(self) -> str:
        return f"MarginBounds({int(self.certified.sum())} of {counted(len(self), 'position')} certified)"

    @property
    def certified(self) -> Tensor:
        """Whether the prediction cannot change, bool [N]."""
        return self.slack > 0


def margin_bounds(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    token_ids: TokenIds,
    rows: Tensor,
    *,
    share: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MarginBounds:
    """Bound how far the logits of a model can move if it reads other rows for some tokens.

    Parameters
    ----------
    model : torch.nn.Module
        A ``LlamaForCausalLM``, for example the embed-tuned model. Its output head stays as it is.
    batches : sequence of mapping
        What :func:`~kslottery_fast.evaluation.predictions.next_token_predictions` takes.
    token_ids : TokenIds
        The k tokens whose rows the other model does not share: those that moved and were not selected.
    rows : Tensor
        [k, d], what the other model reads for them.
    share : float, optional
        Bound the change for rows that move only this share of the way, strictly between 0 and 1.
    progress : callable, optional
        Called with (finished sentences, sentences).

    Returns
    -------
    MarginBounds
        One entry for each supervised position.

    Raises
    ------
    InputError
        The model is not a LLaMA with SiLU, a linear layer is quantized, has an adapter or follows attached rows, the
        rows do not fit the token ids and the model, or the batches supervise no position.
    TypeError
        An argument has the wrong type.

    Notes
    -----
    The model runs with the attention that returns its weights ("eager"), and the bound is computed in float64. Rounding
    in the model's own dtype is not part of it.

    Examples
    --------
    >>> from kslottery_fast.evaluation.encoding import Example, collate, encode
    >>> from kslottery_fast.evaluation.toy import alphabet_model
    >>> model, tokenizer = alphabet_model()
    >>> batch = collate([encode(tokenizer, Example("w", "xyz"))], 27)
    >>> row = model.get_input_embeddings().weight.detach()[[25]].clone()  # "y"
    >>> margin_bounds(model, [batch], [25], row + 0.01)
    MarginBounds(4 of 4 positions certified)
    >>> margin_bounds(model, [batch], [25], -row)
    MarginBounds(3 of 4 positions certified)
    """
    whole: Any = check_model(model)
    batches = check_batches(batches)
    check_progress(progress)
    scale = 1.0 if share is None else check_share(share, "share")
    _check_llama(whole)
    no_tokenizer: Any = None
    ids, values = check_rows(model, token_ids, rows, no_tokenizer)
    network = whole.model
    turn = float(getattr(network.rotary_emb, "attention_scaling", 1.0))
    bounds = [LayerBound(layer, turn) for layer in network.layers]
    head = whole.get_output_embeddings().weight.detach().double() * network.norm.weight.detach().double()
    place = torch.full((table_shape(input_embedding(model))[0],), -1)
    place[ids] = torch.arange(len(ids))
    total, done, found = sum(len(batch["input_ids"]) for batch in batches), 0, []
    with inference(model), _eager(whole):
        for batch in batches:
            inputs = {name: tensor.to(device_of(model)) for name, tensor in batch.items()}
            states, seen, logits = _forward(whole, inputs)
            places = place[batch["input_ids"].cpu()].to(states.device)
            moves = _distances(seen[0].entering, places, values.to(states)) * scale
            allowed = _allowed(inputs)
            for bound, layer in zip(bounds, seen, strict=True):
                moves = bound.moves(layer, moves, allowed)
            final = norm_moves(states, moves, network.norm.variance_epsilon)
            supervised = inputs["labels"][:, 1:] != -100
            found.append(_margins(logits, head, final[:, :-1][supervised]))
            done += len(inputs["input_ids"])
            if progress:
                progress(done, total)
    return MarginBounds(*(torch.cat(column).cpu() for column in zip(*found, strict=True)))


def _check_llama(model: Any) -> None:
    names = {kind.__name__ for kind in type(model).__mro__}
    if "LlamaForCausalLM" not in names or getattr(model.config, "hidden_act", None) not in ("silu", "swish"):
        raise InputError(
            f"model is {shown(type(model).__name__)}: the bound is derived for LlamaForCausalLM with the activation "
            "silu alone, because each kind of layer needs a proof of its own"
        )
    for name, module in model.named_modules():
        if _LINEAR.search(name) and type(module) is not nn.Linear:
            raise InputError(
                f"model has a {type(module).__name__} as {name}: the bound reads the weights of plain linear layers. "
                "Merge adapters and attached rows into the model first, and load it without quantization"
            )


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Compute attention so that its weights can be seen."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def _forward(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, list[Seen], Tensor]:
    """The states before the last norm [B, T, d], what each layer computed, and the logits [n, V]. All are float64."""
    layers, hooks, states = model.model.layers, [], []
    kept: list[dict[str, Tensor]] = [{} for _ in layers]

    def keep_input(store: dict[str, Tensor], name: str) -> Callable[[Any, Any], None]:
        return lambda _, arguments: store.update({name: arguments[0].double()})

    def keep_output(store: dict[str, Tensor], name: str) -> Callable[[Any, Any, Any], None]:
        read: Callable[[Any], Tensor] = _attention_weights if name == "weights" else Tensor.double
        return lambda _, __, output: store.update({name: read(output)})

    for layer, store in zip(layers, kept, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        before = {"entering": layer.input_layernorm, "between": layer.post_attention_layernorm}
        hooks += [module.register_forward_pre_hook(keep_input(store, name)) for name, module in before.items()]
        after = {"query": attention.q_proj, "key": attention.k_proj, "value": attention.v_proj, "weights": attention}
        after |= {"gate": mlp.gate_proj, "up": mlp.up_proj}
        hooks += [module.register_forward_hook(keep_output(store, name)) for name, module in after.items()]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0].double())))
    try:
        logits, _ = supervised_logits(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return states[0], [Seen(**store) for store in kept], logits.double()


def _attention_weights(output: tuple[Tensor, Tensor]) -> Tensor:
    """What an attention layer returns as its weights. None is smaller than one that was rounded to 0 may have been.

    The layer computes them in float32 and converts them. Below the smallest normal number, either may give 0.
    """
    weights = output[1]
    return weights.double().clamp(min=max(torch.finfo(dtype).tiny for dtype in (torch.float32, weights.dtype)))


def _distances(read: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """How far what is read at each position is from what the other model reads there, [B, T]."""
    if len(rows) == 0:
        return read.new_zeros(places.shape)
    apart = (read - rows[places.clamp(min=0)]).norm(dim=-1)
    return torch.where(places >= 0, apart, 0)


def _allowed(inputs: Mapping[str, Tensor]) -> Tensor:
    """Whether a position may attend to another, bool [B, 1, T, T]."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    return torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril() & mask[:, None, None, :]


def _margins(logits: Tensor, head: Tensor, moves: Tensor) -> tuple[Tensor, ...]:
    """The columns of MarginBounds for logits [n, V], if the normed states move by at most ``moves`` [n]."""
    squares = head.square().sum(dim=1)
    columns = []
    size = max(1, _ROWS // len(head))
    for part, move in zip(logits.split(size), moves.split(size), strict=True):
        first, second = part.topk(2, dim=-1).indices.T
        lead = part.gather(1, first[:, None]) - part
        square = squares[first][:, None] + squares - 2 * head[first] @ head.T
        # What rounding can take from the square of a distance is added to it.
        apart = (square.clamp(min=0) + 1e-12 * (squares[first][:, None] + squares)).sqrt() * move[:, None]
        left = (lead - apart).scatter(1, first[:, None], float("inf"))
        margin, bound = (table.gather(1, second[:, None])[:, 0] for table in (lead, apart))
        columns.append((first, second, margin, bound, left.amin(dim=-1)))
    return tuple(torch.cat(column) for column in zip(*columns, strict=True))

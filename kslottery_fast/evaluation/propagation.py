"""How far the hidden states of a LLaMA can move if the rows that it reads move by given L2 distances.

For each position the L2 norm of the change of the residual stream is bounded, layer by layer, around the activations of
one forward pass. Every step is a theorem about real numbers:

- RMSNorm maps x to the first d numbers of sqrt(d) z / |z|, where z is x with sqrt(d eps) appended. A change of length
  delta turns z by at most asin(delta / |z|), so the image moves by at most sqrt(d) times the chord of that angle.
- A matrix stretches a change by at most its largest singular value. Rotary embeddings turn queries and keys.
- If each score changes by at most c_j, then the weight p_j stays between its values where all scores move against it or
  for it. The output of a head moves by at most sum |p'_j - p_j| |v_j - o| + sum p'_j |change of v_j|, with o the output
  before, and its first part by no more than the largest |v_j - o|, since the new weights are a mean.
- SiLU takes its largest value on an interval at an end, and its smallest at an end or at its only minimum.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SILU_MINIMUM = -1.2784645427610738  # where SiLU is smallest, and its value there
_SILU_LEAST = -0.2784645427610738
_SILU_SLOPE = 1.0998393194  # the largest slope of SiLU
_SMALL = 1e-6  # below it, differences of function values would be lost in rounding


@dataclass
class Seen:
    """What one layer computed in a forward pass, float64: [B, T, ...] unless it says otherwise.

    Attributes
    ----------
    entering, between : Tensor
        The residual stream before attention and before the MLP, [B, T, d].
    query, key, value : Tensor
        [B, T, heads x head dimension], before the rotary embedding.
    weights : Tensor
        The attention, [B, heads, T, T], at least as large as a weight that was rounded to 0.
    gate, up : Tensor
        [B, T, m], before SiLU.
    """

    entering: Tensor
    between: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor
    gate: Tensor
    up: Tensor


def operator_norm(matrix: Tensor) -> Tensor:
    """Return the largest singular value of matrices [..., m, n], with a margin for rounding.

    >>> float(operator_norm(torch.diag(torch.tensor([3.0, -4.0])))) >= 4
    True
    """
    wide = matrix.double()
    wide = wide.mT if wide.shape[-2] > wide.shape[-1] else wide
    # The largest eigenvalue of the smaller Gram matrix. This is faster than singular values, and exact to 1e-14.
    return torch.linalg.eigvalsh(wide @ wide.mT)[..., -1].clamp(min=0).sqrt() * (1 + 1e-9)


def norm_moves(states: Tensor, moves: Tensor, eps: float) -> Tensor:
    """Bound how far RMSNorm without its weight moves.

    Parameters
    ----------
    states : Tensor
        [..., d], what it reads.
    moves : Tensor
        [...], bounds on the L2 norm of the change of that.
    eps : float
        The eps of the norm.

    Examples
    --------
    >>> norm_moves(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0]), 0.0)
    tensor([0.], dtype=torch.float64)
    """
    d = states.shape[-1]
    length = (states.double().square().sum(dim=-1) + d * eps).sqrt()
    ratio = moves.double() / length
    chord = 2 * (ratio.clamp(max=1).asin() / 2).sin()
    return d**0.5 * torch.where(ratio < 1, chord, torch.full_like(chord, 2))


def silu_moves(values: Tensor, moves: Tensor) -> Tensor:
    """Bound how far SiLU of ``values`` moves if they move by at most ``moves``.

    >>> silu_moves(torch.tensor([0.0]), torch.tensor([0.0]))
    tensor([0.])
    """
    silu = torch.nn.functional.silu
    low, high, here = silu(values - moves), silu(values + moves), silu(values)
    across = (values - moves <= _SILU_MINIMUM) & (values + moves >= _SILU_MINIMUM)
    least = torch.where(across, torch.full_like(here, _SILU_LEAST), torch.minimum(low, high))
    moved = torch.maximum(torch.maximum(low, high) - here, here - least).clamp(min=0)
    return torch.where(moves < _SMALL, _SILU_SLOPE * moves, moved)


class LayerBound:
    """The bound for one decoder layer of a LLaMA.

    Parameters
    ----------
    layer : torch.nn.Module
        The layer.
    rotary_scale : float
        By what the rotary embedding multiplies queries and keys beside turning them.
    """

    def __init__(self, layer: Any, rotary_scale: float) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        first, second = layer.input_layernorm, layer.post_attention_layernorm
        self.eps, self.between_eps = first.variance_epsilon, second.variance_epsilon
        self.head, self.scale = attention.head_dim, attention.scaling * rotary_scale**2
        before, gain = first.weight.double(), second.weight.double()
        self.query, self.key, self.value = (
            operator_norm((projection.weight.double() * before).unflatten(0, (-1, self.head)))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        out = attention.o_proj.weight.double()
        self.out, self.out_heads = operator_norm(out), operator_norm(out.unflatten(1, (-1, self.head)).transpose(0, 1))
        gate, up, self.down = (
            mlp.gate_proj.weight.double() * gain,
            mlp.up_proj.weight.double() * gain,
            mlp.down_proj.weight.double(),
        )
        self.gate, self.up, self.down_norm = operator_norm(gate), operator_norm(up), operator_norm(self.down)
        self.gate_rows, self.up_rows = gate.norm(dim=1), up.norm(dim=1)

    def moves(self, seen: Seen, moves: Tensor, allowed: Tensor) -> Tensor:
        """Bound the change of the residual stream after the layer.

        Parameters
        ----------
        seen : Seen
            What the layer computed.
        moves : Tensor
            [B, T], the bounds before the layer.
        allowed : Tensor
            bool [B, 1, T, T], whether a position may attend to another.
        """
        between = moves + self._attention(seen, norm_moves(seen.entering, moves, self.eps), allowed)
        return between + self._mlp(seen, norm_moves(seen.between, between, self.between_eps))

    def _attention(self, seen: Seen, moves: Tensor, allowed: Tensor) -> Tensor:
        queries, keys, values = (self._heads(tensor) for tensor in (seen.query, seen.key, seen.value))
        groups = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        dq = self.query[None, :, None] * moves[:, None]  # [B, H, T]
        dk, dv = (norms.repeat_interleave(groups)[None, :, None] * moves[:, None] for norms in (self.key, self.value))
        turned = queries.norm(dim=-1)[..., None] * dk[:, :, None] + dq[..., None] * (keys.norm(dim=-1) + dk)[:, :, None]
        scores = torch.where(allowed, self.scale * turned, 0)  # [B, H, T, T]
        weights = torch.where(allowed, seen.weights, 0)
        least, most = _weight_range(weights, scores)
        shift = _weight_shift(weights, scores, least, most)
        away = torch.where(
            allowed, torch.cdist(weights @ values, values, compute_mode="donot_use_mm_for_euclid_dist"), 0
        )
        near = torch.minimum((shift * away).sum(dim=-1), away.amax(dim=-1))
        carried = torch.minimum(
            (most * dv[:, :, None]).sum(dim=-1), torch.where(allowed, dv[:, :, None], 0).amax(dim=-1)
        )
        heads = near + carried
        apart = (heads * self.out_heads[None, :, None]).sum(dim=1)
        return torch.minimum(apart, self.out * heads.norm(dim=1))

    def _mlp(self, seen: Seen, moves: Tensor) -> Tensor:
        gate, up = moves[..., None] * self.gate_rows, moves[..., None] * self.up_rows
        active = torch.nn.functional.silu(seen.gate).abs()
        opened = silu_moves(seen.gate, gate)
        change = active * up + opened * seen.up.abs() + opened * up
        largest = active.amax(dim=-1) * self.up + _SILU_SLOPE * self.gate * seen.up.abs().amax(dim=-1)
        whole = torch.minimum(change.norm(dim=-1), moves * largest + (opened * up).norm(dim=-1))
        return torch.minimum(self.down_norm * whole, (change @ self.down.abs().T).norm(dim=-1))

    def _heads(self, tensor: Tensor) -> Tensor:
        """[B, T, heads x head dimension] as [B, heads, T, head dimension]."""
        return tensor.unflatten(-1, (-1, self.head)).transpose(1, 2)


def _weight_range(weights: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each attention weight if each score moves by at most ``scores``."""
    most = weights / (weights + _others(weights * (-scores).exp()) * (-scores).exp())
    others = _others(torch.where(weights > 0, weights * scores.exp(), 0))
    least = weights / (weights + torch.where(others > 0, others * scores.exp(), 0))  # exp may be infinite
    return torch.where(weights > 0, least, 0), torch.where(weights > 0, most, 0)


def _weight_shift(weights: Tensor, scores: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Bound how far each attention weight moves. For small moves it does not subtract numbers that are almost equal.

    If scores move by at most c, and the one of a weight by at most c_j, the weight changes by a factor between
    exp(-c - c_j) and exp(c + c_j).
    """
    exponent = scores + scores.amax(dim=-1, keepdim=True)
    plain = torch.maximum(most - weights, weights - least).clamp(min=0)
    return torch.where(exponent < _SMALL, weights * exponent.clamp(max=_SMALL).expm1(), plain)


def _others(values: Tensor) -> Tensor:
    """The sum of all other numbers of the last dimension. Nothing is subtracted, so no small sum is lost."""
    before = torch.nn.functional.pad(values, (1, 0))[..., :-1].cumsum(-1)
    after = torch.nn.functional.pad(values, (0, 1))[..., 1:].flip(-1).cumsum(-1).flip(-1)
    return before + after

"""Plain kernels for a CPU under torch's attention of variable lengths, whose own kernels are for GPUs: what a model
computes through the operator, its gradient and its compilation can then be tested anywhere."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen


def forward(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor, longest: int, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(W, H, D) of causal attention between the ends, log-sum-exps that nobody reads, and a random state."""
    _, causal, scale, window = rest[:4]
    assert causal
    assert list(window) == [-1, 0]
    assert ends.dtype == torch.int32
    assert torch.equal(ends, key_ends)
    assert int(ends.diff().max()) <= longest
    out = torch.empty_like(query)
    for at, q, k, v in _segments(query, key, value, ends):
        out[at] = (_weights(q, k, scale) @ v).transpose(0, 1).to(out.dtype)
    return out, query.new_zeros(query.shape[1], query.shape[0], dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, ends: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    scale, groups = rest[5], query.shape[1] // key.shape[1]
    found = [torch.empty_like(x) for x in (query, key, value)]
    for at, q, k, v in _segments(query, key, value, ends):
        g = grad[at].transpose(0, 1).double()
        weights = _weights(q, k, scale)
        by_weight = g @ v.transpose(1, 2)
        by_score = weights * (by_weight - (weights * by_weight).sum(-1, keepdim=True)) * _scale(q, scale)
        own = (by_score @ k, by_score.transpose(1, 2) @ q, weights.transpose(1, 2) @ g)
        for whole, part in zip(found, own, strict=True):
            if whole is not found[0]:  # a key's gradient is the sum over the queries' heads that share it
                part = part.unflatten(0, (-1, groups)).sum(1)
            whole[at] = part.transpose(0, 1).to(whole.dtype)
    return found[0], found[1], found[2]


def _segments(query: Tensor, key: Tensor, value: Tensor, ends: Tensor) -> Iterator[Any]:
    """The place of each segment, and its query, key and value (H, L, D) in float64, with a key for every query."""
    groups = query.shape[1] // key.shape[1]
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (x[start:end].transpose(0, 1).double() for x in (query, key, value))
        yield slice(start, end), q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)


def _weights(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """(H, L, L): how much each query takes from each key up to its own."""
    scores = query @ key.transpose(1, 2) * _scale(query, scale)
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def _scale(query: Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


varlen._varlen_attn.register_kernel("cpu", forward)
varlen._varlen_attn_backward.register_kernel("cpu", backward)

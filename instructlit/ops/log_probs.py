"""Log-probabilities of tokens: the one log-softmax-and-gather, with the temperature and the shift by one.

Logits come as (B, T, V) or packed as (M, V), in any precision, and are the largest tensors of a step. They are read in
tiles of a few million values: no float32 copy of a half-precision batch is ever made, and the gradient, which has to be
as large as the logits, is written in their own precision. On a GPU with Triton two kernels read each logit once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instructlit.ops.gpu_kernels import kernels_run
from instructlit.ops.masking import widen

TILE_ELEMENTS = 1 << 18
"""Logits widened at once: 1 MiB in float32, which a core's cache holds from one operation on them to the next."""

GPU_TILE_ELEMENTS = 1 << 26
"""The same on a GPU without kernels: 256 MiB in float32, of which two are there at a time. That is 523 positions of a
vocabulary of 128,256, so that 32,768 take 63 tiles and not a thousand."""


def token_log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability in nats of each id under the logits that stand at the same place.

    Args:
        logits: (B, T, V) or (M, V), any float dtype, already aligned: `logits[:, t]` predicts `ids[:, t]`.
        ids: (B, T) or (M,) int64.
        temperature: the sampling temperature; logits are divided by it. The policy, the old policy and the reference
            must all be read at the temperature that was sampled with, or their ratios are those of other
            distributions.

    Returns:
        float32 of the shape of `ids` (float64 for float64 logits). Differentiable once.
    """
    return token_log_probs_and_entropy(logits, ids, temperature)[0]


def next_token_log_probs(logits: Tensor, input_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of every token given those before it: the shift by one of a causal model, done here only.

    Args:
        logits: (B, T, V), the model's output for `input_ids`: `logits[:, t]` predicts `input_ids[:, t + 1]`.
        input_ids: (B, T) int64.
        temperature: as in `token_log_probs`.

    Returns:
        (B, T - 1) float32: column t holds the log-probability of `input_ids[:, t + 1]`.
    """
    # The ids are shifted and the output is cut. Cutting the logits would cost a second (B, T, V) in the backward pass.
    return token_log_probs(logits, input_ids.roll(-1, dims=1), temperature)[:, :-1]


def token_log_probs_and_entropy(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`token_log_probs`, and the entropy in nats of the same distributions, for one reading of the logits.

    The entropies come in the same shape and have no gradient. A logit of minus infinity is a token of probability 0 and
    adds nothing to them.
    """
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not match ids {tuple(ids.shape)}")
    _check_temperature(temperature)
    return _TokenLogProbs.apply(logits, ids, temperature)


class _TokenLogProbs(torch.autograd.Function):
    """gather(logits) - logsumexp(logits) and the entropy, keeping for the backward pass only the logits as they are and
    the (B, T) norm."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        picked = widen(logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)) / temperature
        norm, entropies = _norms_and_entropies(logits, temperature)
        ctx.mark_non_differentiable(entropies)
        ctx.save_for_backward(logits, ids, norm)
        ctx.temperature = temperature
        return picked - norm, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """d log p(id) / d logit_v = (1[v = id] - p(v)) / temperature."""
        logits, ids, norm = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.temperature
        if (kernels := _kernels(logits)) is not None:
            return kernels.gradient(logits, ids, norm, scale, ctx.temperature), None, None
        gradient = torch.empty_like(logits)
        for place in _tiles(logits):
            # exp(x - norm) is the softmax; the tile is new memory, so it can be worked on in place
            tile = (_scaled(logits[place], ctx.temperature) - norm[place].unsqueeze(-1)).exp_()
            tile.mul_(-scale[place].unsqueeze(-1))
            tile.scatter_add_(-1, ids[place].unsqueeze(-1), scale[place].unsqueeze(-1))
            gradient[place] = tile.to(logits.dtype)
        return gradient, None, None


def _kernels(logits: Tensor) -> Any:
    """The module of kernels where they can read `logits`; None elsewhere."""
    plain = logits.is_cuda and logits.is_contiguous() and logits.dtype != torch.float64 and logits.numel() > 0
    if not plain or not kernels_run(logits.device):
        return None
    from instructlit.ops import log_probs_kernels

    return log_probs_kernels


def _tiles(logits: Tensor) -> Iterator[tuple[slice, ...]]:
    """Index tuples that cover every place of (B, T, V) or (M, V) logits in pieces of about so many logits as a tile of
    their device has."""
    if logits.dim() not in (2, 3):
        raise ValueError(f"logits are (B, T, V) or (M, V), not {tuple(logits.shape)}")
    elements = GPU_TILE_ELEMENTS if logits.is_cuda else TILE_ELEMENTS
    places = max(1, elements // max(1, logits.shape[-1]))
    if logits.dim() == 2:
        for start in range(0, logits.shape[0], places):
            yield (slice(start, start + places),)
        return
    rows, width = logits.shape[:2]
    rows_at_once, columns_at_once = max(1, places // max(1, width)), min(width, places)
    for row in range(0, rows, rows_at_once):
        for column in range(0, width, max(1, columns_at_once)):
            yield slice(row, row + rows_at_once), slice(column, column + columns_at_once)


def _scaled(tile: Tensor, temperature: float) -> Tensor:
    return widen(tile) if temperature == 1.0 else widen(tile) / temperature


def _norms_and_entropies(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log-sum-exp and entropy of logits / temperature along the last dimension, in float32 at least."""
    if (kernels := _kernels(logits)) is not None:
        return kernels.norms_and_entropies(logits, temperature)
    norms, entropies = (logits.new_empty(logits.shape[:-1], dtype=widen(logits[..., :0]).dtype) for _ in range(2))
    for place in _tiles(logits):
        norms[place], entropies[place] = _norm_and_entropy(_scaled(logits[place], temperature))
    return norms, entropies


def _norm_and_entropy(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same of one tile, for one exponential: with d = x - max x, H = log sum e^d - sum d e^d / sum e^d."""
    top = x.amax(dim=-1, keepdim=True)
    x = x - top
    share = x.exp()
    total = share.sum(dim=-1)
    log = total.log()
    x.clamp_(min=torch.finfo(x.dtype).min)  # 0 times minus infinity is to be 0
    return top.squeeze(-1) + log, log - share.mul_(x).sum(dim=-1) / total


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")

"""The clipped objectives of PPO, for the policy and for the value function."""

import math

import torch
from torch import Tensor

from instructlit.losses.base import LossSum
from instructlit.ops.kl import k3
from instructlit.ops.masking import check_same_shape, masked_sum, zero_outside


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    weights: Tensor | None = None,
) -> tuple[LossSum, dict[str, Tensor]]:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) summed over response tokens, and how many those are.

    Args:
        log_probs: (B, T), policy now, with the gradient, nats.
        old_log_probs: (B, T), policy at the rollout, same temperature, nats.
        advantages: (B, T), whitened.
        mask: (B, T), True on the response.
        clip: how far the ratio may move before its gradient stops.
        weights: (B, T) on the terms of the tokens, without a gradient; None is 1 for each.

    Returns:
        The loss, and sums over the mask without a gradient, each to be divided by the loss's count:
        `approx_kl`, estimate of KL(old policy || policy) in nats per token (k3, never negative);
        `clip_fraction`, tokens where the clipped term is the larger loss, so that the token gives no gradient;
        `ratio_mean`, the ratio, 1 as long as nothing was learned.

    Source: Schulman et al. 2017 (arXiv 1707.06347) equation 7.
    """
    check_same_shape(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    # masked before the exponential: junk outside must not overflow and reach the gradient as 0 * inf
    log_probs, old_log_probs = zero_outside(log_probs, mask), zero_outside(old_log_probs, mask)
    ratio = torch.exp(log_probs - old_log_probs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    terms = torch.maximum(unclipped, clipped)
    if weights is not None:
        terms = terms * weights.detach()
    loss = LossSum(masked_sum(terms, mask), mask.sum().float())
    with torch.no_grad():
        statistics = {
            "approx_kl": masked_sum(k3(old_log_probs, log_probs), mask),
            "clip_fraction": masked_sum((clipped > unclipped).float(), mask),
            "ratio_mean": masked_sum(ratio, mask),
        }
    return loss, statistics


def sampler_weights(log_probs: Tensor, sampled_log_probs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(p(trainer) / p(sampler), cap) for every token (B, T), 0 outside the mask: truncated importance sampling.

    An engine with kernels or a precision of its own draws from a policy that is a little different from the one that
    is trained. Weighted so, the mean over its samples is that over the trainer's policy, but for what the cap takes off
    the few tokens that it drew far too rarely, so that the variance stays bounded.

    Args:
        log_probs: (B, T) of the trainer, at the weights that were sampled from, nats.
        sampled_log_probs: (B, T) of the engine, nats.
        mask: (B, T), True on the response.
        cap: the largest weight, at least 1.

    Source: Ionides 2008, "Truncated Importance Sampling"; per token in RL: Espeholt et al. 2018 (arXiv 1802.01561)
    section 4.1, the weights rho.
    """
    check_same_shape(mask, log_probs=log_probs, sampled_log_probs=sampled_log_probs)
    with torch.no_grad():
        difference = zero_outside(log_probs, mask) - zero_outside(sampled_log_probs, mask)
        return difference.clamp_max(math.log(cap)).exp() * mask


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2
) -> tuple[LossSum, dict[str, Tensor]]:
    """Half the squared error, or that of the value held within `clip` of the rollout's where it is the larger, summed.

    Args:
        values: (B, T), value model now, with the gradient.
        old_values: (B, T), value model at the rollout: the same numbers that the returns were made with.
        returns: (B, T), unwhitened advantages plus `old_values`.
        mask: (B, T), True on the response.
        clip: how far, in reward units, a value may move from the rollout's before its gradient stops; None for no
            limit.

    Returns:
        The loss, and `clip_fraction`: tokens where the held value is the larger loss, to be divided by the loss's
        count.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), released code; the half and the larger of two as in OpenAI's PPO.
    """
    check_same_shape(mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = (zero_outside(x, mask) for x in (values, old_values, returns))
    reach = math.inf if clip is None else clip
    held = values.clamp(old_values - reach, old_values + reach)  # a value within reach as it is, to its last bit
    free_error, held_error = (values - returns).square(), (held - returns).square()
    loss = LossSum(masked_sum(torch.maximum(free_error, held_error), mask) / 2, mask.sum().float())
    with torch.no_grad():
        return loss, {"clip_fraction": masked_sum((held_error > free_error).float(), mask)}

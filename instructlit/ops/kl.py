"""Per-token estimators of KL(policy || reference) from tokens that the policy sampled.

With y sampled from the policy and d = log policy(y) - log reference(y), k1 and k3 are unbiased, k2 is close while the
two distributions are. In the reward they are numbers without a gradient, and any of them can be used there. As a loss
they differ: the expected gradient of k1 is zero, that of k2 is the gradient of KL(policy || reference),
and that of k3 is the gradient of KL(reference || policy). The recipe has k1, signed, in the reward.

Source: J. Schulman, "Approximating KL Divergence" (2020); InstructGPT (arXiv 2203.02155) equation 2 for k1 in the
reward.
"""

import torch
from torch import Tensor

from instructlit.ops.masking import check_same_shape, masked_sum, widen


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """d: unbiased, of either sign, in nats; any shape."""
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return widen(log_probs) - widen(ref_log_probs)


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """d squared over 2: biased, never negative, in nats; any shape."""
    return k1(log_probs, ref_log_probs).square() / 2


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """exp(-d) - 1 + d: unbiased and never negative, in nats; any shape."""
    difference = k1(log_probs, ref_log_probs)
    return torch.expm1(-difference) + difference


def sequence_kl(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
    """k1 summed over each response, (B, T) to (B,), in nats per sequence: the unit of the adaptive controller's
    target."""
    return masked_sum(k1(log_probs, ref_log_probs), mask, dim=1)

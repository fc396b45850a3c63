"""Generalised advantage estimation."""

import torch
from torch import Tensor

from instructlit.ops.masking import check_same_shape, zero_outside


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages (not whitened) and the value function's targets.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, with V and A zero after a row's last
    token: an episode is one response and is over there, cut short or not. Returns are A + V, with the advantages as
    they stand here, before any whitening.

    Args:
        rewards: (B, T), the shaped reward of each response token.
        values: (B, T), `values[:, t]` estimates the rewards from token t on, made before token t is seen.
        mask: (B, T), True on the response; the True positions of a row are neighbours.
        gamma: discount per token; the recipe has none.
        lam: 1 is Monte Carlo (all variance), 0 the one-step error (all bias).

    Returns:
        advantages and returns, (B, T) float32, zero outside the mask.

    Source: Schulman et al. 2016 (arXiv 1506.02438) equation 16.
    """
    check_same_shape(mask, rewards=rewards, values=values)
    values = zero_outside(values, mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(values.shape[0])
    for t in reversed(range(values.shape[1])):
        # after the end both carried columns are zero, since rewards and values are
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values

"""One token for every row from the softmax of its logits, with the log-prob that it was drawn at."""

import torch
from torch import Tensor

from instructlit.ops.gpu_kernels import kernels_run


def chance(rows: int, device: torch.device, generator: torch.Generator | None, steps: int = 1) -> Tensor:
    """(rows, steps) float64, uniform in [0, 1): what `draw` turns into ids. None takes torch's global generator."""
    return torch.rand(rows, steps, dtype=torch.float64, device=device, generator=generator)


def draw(logits: Tensor, temperature: float, chance: Tensor | None) -> tuple[Tensor, Tensor]:
    """One id a row from softmax(logits / temperature), by inverting the cumulative distribution.

    Args:
        logits: (B, V) of any float dtype.
        temperature: they are divided by it.
        chance: (B, 1) float64, uniform in [0, 1), as `chance` gives it; None takes the most likely id.

    Returns:
        Ids (B,) int64 and their log-probs (B,) float32 in nats. The sums run in float64, so that the last of 100,000
        tokens keeps its exact share.
    """
    if chance is not None and kernels_run(logits.device):
        from instructlit.rollout import kernels

        return kernels.draw(logits, temperature, chance)
    scaled = logits if temperature == 1 else logits.float() / temperature
    log_probs = torch.log_softmax(scaled, dim=-1, dtype=torch.float32)
    if chance is None:
        ids = log_probs.argmax(dim=-1, keepdim=True)
    else:
        cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)
        ids = torch.searchsorted(cumulative, chance * cumulative[:, -1:], right=True).clamp_max(logits.shape[1] - 1)
    return ids[:, 0], log_probs.gather(1, ids)[:, 0]

"""The figures PPO logs: every mean is over the tokens, responses or updates that count, on all ranks."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from instructlit.ops.kl import sequence_kl
from instructlit.ops.masking import Reduce, masked_moments, masked_sum
from instructlit.ops.statistics import explained_variance
from instructlit.types import Rollout


class UpdateMetrics:
    """Sums over the micro-batches of an iteration's updates; `compute` turns them into means.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device):
        zero = torch.zeros((), dtype=torch.float32, device=device)  # under bf16-true the default has 16 bits
        self.sums: dict[str, Tensor] = defaultdict(lambda: zero)
        self.tokens: dict[str, Tensor] = dict.fromkeys(("policy", "value", "engine", "sampler"), zero)
        self.means: dict[str, Tensor] = defaultdict(lambda: zero)
        self.updates = 0

    def state(self) -> tuple[Any, ...]:
        """What `restore` goes back to: the sums are replaced, never changed in place."""
        return self.sums.copy(), self.tokens.copy(), self.means.copy(), self.updates

    def restore(self, state: tuple[Any, ...]) -> None:
        """Forget what was added since `state` was taken."""
        self.sums, self.tokens, self.means, self.updates = state

    def add(self, part: str, sums: dict[str, Tensor], mask: Tensor) -> None:
        """A micro-batch's sums over response tokens.

        Args:
            part: "policy", "value", "engine" or "sampler": the tokens of each are counted separately.
            sums: scalars, by the metric's name after that of the part.
            mask: (B, R), the tokens that were summed over.
        """
        self.tokens[part] = self.tokens[part] + mask.sum()
        for name, value in sums.items():
            self.sums[f"{part}/{name}"] = self.sums[f"{part}/{name}"] + value

    def add_update(self, figures: dict[str, Tensor]) -> None:
        """Losses and gradient norms of one optimiser step, already over all ranks."""
        self.updates += 1
        for name, value in figures.items():
            self.means[name] = self.means[name] + value.detach().float()

    def compute(self, reduce: Reduce) -> dict[str, Tensor]:
        """Means over tokens of all ranks, and over updates."""
        names = sorted(self.sums)
        summed = reduce(torch.stack([*(self.sums[name] for name in names), *self.tokens.values()])).unbind()
        tokens = dict(zip(self.tokens, summed[len(names) :], strict=True))
        figures = {
            name: total / tokens[name.split("/")[0]].clamp_min(1)
            for name, total in zip(names, summed[: len(names)], strict=True)
        }
        return figures | {name: total / max(self.updates, 1) for name, total in self.means.items()}


def rollout_metrics(rollout: Rollout, beta: float, reduce: Reduce) -> dict[str, Tensor]:
    """Metrics of the rollout, before the updates."""
    mask = rollout.response_mask
    per_response = torch.stack(
        [
            sequence_kl(rollout.old_log_probs, rollout.ref_log_probs, mask),
            masked_sum(rollout.rewards, mask, dim=1),
            mask.sum(dim=1).float(),
            rollout.ended.float(),
        ]
    ).sum(dim=1)
    kl, reward, length, ended = reduce(per_response).unbind()
    count, score, variance = masked_moments(rollout.scores, torch.ones_like(rollout.ended), reduce)
    means = {
        "objective/score": score,
        "objective/score_std": variance.sqrt(),
        "objective/kl": kl / count,
        "objective/reward": reward / count,
        "objective/kl_coefficient": torch.tensor(beta, dtype=torch.float32),
        "response/length": length / count,
        "response/eos_fraction": ended / count,
        "value/explained_variance": explained_variance(rollout.values, rollout.returns, mask, reduce),
    }
    values = torch.stack([masked_sum(rollout.values, mask), masked_sum(rollout.returns, mask), mask.sum().float()])
    value, returns, tokens = reduce(values).unbind()
    return means | {"value/mean": value / tokens, "value/return_mean": returns / tokens}

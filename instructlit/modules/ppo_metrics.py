"""The figures PPO logs: every mean is over the tokens, responses or updates that count, on all ranks."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructlit.ops.kl import sequence_kl
from instructlit.ops.masking import masked_moments, masked_sum
from instructlit.ops.statistics import explained_variance
from instructlit.types import Rollout

Reduce = Callable[[Tensor], Tensor]


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

    def add_policy(self, stats: dict[str, Tensor], entropy: Tensor, mask: Tensor) -> None:
        """A micro-batch's sums over response tokens, with the entropy (B, R) of its steps."""
        self.tokens["policy"] = self.tokens["policy"] + mask.sum()
        for name, value in (stats | {"entropy": masked_sum(entropy, mask)}).items():
            self.sums[f"policy/{name}"] = self.sums[f"policy/{name}"] + value

    def add_engine_gap(self, difference: Tensor, mask: Tensor) -> None:
        """The trainer's log-probs less the engine's (B, R), of the same weights."""
        self.tokens["engine"] = self.tokens["engine"] + mask.sum()
        self.sums["engine/gap"] = self.sums["engine/gap"] + masked_sum(difference.abs(), mask)

    def add_sampler_weights(self, weights: Tensor, mask: Tensor) -> None:
        """A micro-batch's weights of truncated importance sampling (B, R), over all updates."""
        self.tokens["sampler"] = self.tokens["sampler"] + mask.sum()
        self.sums["sampler/weight_mean"] = self.sums["sampler/weight_mean"] + masked_sum(weights, mask)

    def add_value(self, stats: dict[str, Tensor], mask: Tensor) -> None:
        """A micro-batch's sums over response tokens of the value loss."""
        self.tokens["value"] = self.tokens["value"] + mask.sum()
        for name, value in stats.items():
            self.sums[f"value/{name}"] = self.sums[f"value/{name}"] + value

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
    """What the rollout was like, before it was learnt from."""
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

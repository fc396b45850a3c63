"""Mean and variance of a stream."""

import math
from typing import Any

import torch
from torch import Tensor

from instructlit.ops.masking import Reduce, masked_moments

ROUNDING = 1e-6
"""Standard deviation, in units of the mean, of float32 values that differ only in their last bits."""


class RunningMoments:
    """Count, mean and population variance of everything seen, merged batch by batch.

    Kept as Python floats (float64), so that a checkpoint holds plain numbers and a long run loses no digits.

    Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0.0, 0.0, 0.0

    def update(self, x: Tensor, mask: Tensor | None = None, reduce: Reduce | None = None) -> None:
        """Add the values of `x` that count (all of them without `mask`), those of all ranks with `reduce`."""
        mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        # float64 where the device has it, so that a batch far from 0 keeps its variance
        x = x.detach() if x.device.type == "mps" else x.detach().double()
        count, mean, variance = torch.stack(masked_moments(x, mask, reduce)).tolist()
        if not count:
            return
        total, difference = self.count + count, mean - self.mean
        self._squares += variance * count + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total

    @property
    def variance(self) -> float:
        """Population variance; 0 before anything was seen."""
        return self._squares / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Square root of the population variance."""
        return math.sqrt(self.variance)

    def normalized(self, x: Tensor) -> Tensor:
        """`x` less the mean, over the standard deviation once the values seen differ by more than their rounding.

        Until then, as after one value, there is nothing to measure by: any other value would come out without bound.
        """
        return (x - self.mean) / (self.std if self.std > ROUNDING * abs(self.mean) else 1.0)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: plain numbers."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self.count, self.mean, self._squares = float(state["count"]), float(state["mean"]), float(state["squares"])

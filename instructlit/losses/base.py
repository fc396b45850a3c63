"""A loss as a sum and a count, so that the split of a step into micro-batches and ranks changes nothing."""

from typing import NamedTuple

import torch
from torch import Tensor


class LossSum(NamedTuple):
    """What was summed and over how many.

    The loss of an optimiser step is the sum of all totals over the sum of all counts, over micro-batches and ranks.
    So each micro-batch backpropagates `mean(count of the whole step)`; a mean of means would weigh short
    micro-batches too much.

    Example: per-token losses (1, 2) in one micro-batch and (6) in the next. The loss is 9 / 3 = 3, while the mean of
    the two means is 3.75.
    """

    total: Tensor  # scalar float32, with the gradient
    count: Tensor  # scalar float32, tokens, prompts or pairs

    def mean(self, count: Tensor | float | None = None) -> Tensor:
        """The total over `count` (this one's own by default), a scalar; 0 where nothing counts."""
        by = self.count if count is None else torch.as_tensor(count)
        return self.total / by.clamp(min=1)

    def detach(self) -> "LossSum":
        """The same numbers without the gradient, to be logged."""
        return LossSum(self.total.detach(), self.count.detach())

"""The mean of a validation metric, in float32 whatever the precision of the module that it is a part of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """A mean over rows or tokens of all ranks, in float32 where the module is in 16 bits (`precision: bf16-true`) too.

    A sum in bf16 stops growing once it is about 256 times what is added. NaN is kept; torchmetrics' mean would leave
    it out.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        for name in ("total", "count"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor | int) -> None:
        """Add a sum () and the number of its terms."""
        self.total = self.total + total
        self.count = self.count + count

    def compute(self) -> Tensor:
        return self.total / self.count

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any) -> Any:
        return super()._apply(lambda x: fn(x).to(x.dtype), *args)  # to another device, but no other type

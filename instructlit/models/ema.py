"""The exponential moving average of a policy's weights.

Source: Ouyang et al. 2022 (InstructGPT), appendix C.4: decay 0.992, here counted per policy update.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from instructlit.errors import UserError, require


class EMA:
    """average <- decay * average + (1 - decay) * weight, after every update; it starts at the weights it is made from.

    Kept in float32 whatever the weights' dtype: at 0.992 a 16-bit average would stop moving.

    Args:
        module: its trainable parameters, as they are now, are averaged.
        decay: share of the old average that stays, at least 0 and below 1.
    """

    def __init__(self, module: nn.Module, decay: float = 0.992):
        require("a number of at least 0 and below 1", "EMA.", decay=decay)
        self.decay = decay
        self.updates = 0
        self._weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().float().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights; call it after each optimiser step."""
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight.detach().float(), 1.0 - self.decay)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module holds the average inside the block, and exactly its own weights again after it."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(own)

    def state_dict(self) -> dict[str, Any]:
        """The averages by parameter name (float32) and the number of updates; the decay is a setting."""
        return {"average": dict(self._average)} | self.counters()

    def counters(self) -> dict[str, Any]:
        """The state without the averages, for those whose shards are kept elsewhere."""
        return {"updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same parameters; from `counters` the averages stay as they are.

        Raises:
            UserError: the state is of other parameters.
        """
        average = state.get("average", self._average)
        if average.keys() != self._average.keys():
            odd = sorted(average.keys() ^ self._average.keys())
            raise UserError(
                f"the saved average and the model differ in {len(odd)} parameters, such as {odd[0]}",
                where="checkpoint: EMA",
                expected="the parameters the average was made of",
                fix="resume with the model options the checkpoint was written with",
            )
        self.updates = int(state["updates"])
        for name, value in average.items():
            self._average[name].copy_(value)

    def to(self, device: torch.device | str) -> None:
        """Move the averages, as when the module has moved."""
        self._average = {name: average.to(device) for name, average in self._average.items()}

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        # In place: a sharded parameter's storage is also held by its sharding wrapper.
        for name, weight in self._weights.items():
            weight.copy_(values[name])

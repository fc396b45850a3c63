"""Steps whose loss or gradient is NaN or infinite: found before they reach the weights, and skipped or ending the run.

The gradient norm is computed anyway, for clipping, and is NaN or infinite if any part of the gradient is. So the check
looks at two numbers. They are sums over all ranks, which therefore all see the same and decide alike.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from instructlit.errors import UserError, require


@dataclass
class NonFinite:
    """What happens at a step whose loss or gradient is NaN or infinite; the weights never take it.

    Args:
        action: `stop` the run, or `skip` the step: weights, optimiser, schedule and moving average stay as they are.
        max_in_a_row: with `skip`, the run stops after this many consecutive steps that are not finite.
    """

    action: Literal["stop", "skip"] = "stop"
    max_in_a_row: int = 3

    def __post_init__(self) -> None:
        if self.action not in ("stop", "skip"):
            raise UserError(f"action is {self.action!r}", where="nonfinite.action", expected="stop or skip")
        require("a whole number above 0", "nonfinite.", max_in_a_row=self.max_in_a_row)


class StepGuard:
    """Decides whether a step is taken, and counts those that are not.

    Args:
        rule: what to do with steps that are not finite.
    """

    def __init__(self, rule: NonFinite):
        self.rule = rule
        self.skipped = self.in_a_row = 0

    def passes(self, figures: Mapping[str, Tensor], step: int, batch: Callable[[], str]) -> bool:
        """Whether all figures are finite.

        Args:
            figures: losses and gradient norms () of the step over all ranks, by name.
            step: optimiser steps taken before it.
            batch: tells the rows of the step; called only where a figure is not finite.

        Raises:
            UserError: one is not, and the rule is to stop or the last steps were not finite either.
        """
        values = torch.stack([value.detach().float() for value in figures.values()])  # looked at once, not one by one
        if bool(torch.isfinite(values).all()):
            self.in_a_row = 0
            return True
        found = zip(figures, values.tolist(), strict=True)
        what = ", ".join(f"{name} is {value}" for name, value in found if not math.isfinite(value))
        stops = self.rule.action == "stop" or self.in_a_row + 1 >= self.rule.max_in_a_row
        skips = self.rule.action == "skip"
        again = "" if skips else "; nonfinite.action: skip continues without such steps"
        last = f" {self.in_a_row + 1} times in a row (nonfinite.max_in_a_row)" if skips and stops else ""
        fault = UserError(
            f"optimiser step {step + 1} was not taken{last}: {what}",
            where=batch(),
            expected="finite losses and gradients",
            fix=f"check these rows or lower the learning rate{again}",
        )
        fault.on_all_ranks = True
        self.in_a_row += 1
        if stops:
            raise fault
        self.skipped += 1
        rank_zero_warn(str(fault))
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])

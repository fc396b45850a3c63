"""Learning-rate schedules, counted in optimiser steps (for PPO: policy updates).

The number of steps of a run is known only once its data is, so a module hands it over by `set_total_steps` before the
first step. Everything but the optimiser is in `state_dict`, as plain numbers.
"""

import math
from abc import abstractmethod
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from instructlit.errors import UserError, require


class Schedule(LRScheduler):
    """A learning rate of `factor(step)` times the optimiser's own, where `step` counts the updates already done.

    Args:
        optimizer: the optimiser whose rates are set.
        warmup_steps: updates over which the rate rises in a straight line to the optimiser's own.
        initial_fraction: fraction of the rate that the first update of the warm-up uses.
        total_steps: updates of the whole run; None takes the number that the module works out.
    """

    needs_total = True

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 0,
        initial_fraction: float = 0.1,
        total_steps: int | None = None,
    ):
        name = f"{type(self).__name__}."
        require("a whole number, 0 or more", name, warmup_steps=warmup_steps)
        require("a number from 0 to 1", name, initial_fraction=initial_fraction)
        require("a whole number above 0", name, total_steps=total_steps)
        self.warmup_steps = warmup_steps
        self.initial_fraction = initial_fraction
        self.total_steps = total_steps
        super().__init__(optimizer)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """The factor at `step` updates after the warm-up."""

    def factor(self, step: int) -> float:
        """The factor for the update that follows `step` others."""
        if step < self.warmup_steps:
            return self.initial_fraction + (1.0 - self.initial_fraction) * step / self.warmup_steps
        return self.after_warmup(step - self.warmup_steps)

    def set_total_steps(self, total_steps: int | None) -> None:
        """Take the run's number of updates, unless one was given; the current rates follow at once.

        Raises:
            UserError: the rate depends on the run's length, which is unknown or shorter than the warm-up.
        """
        if self.total_steps is None and total_steps is not None:
            self.total_steps = max(int(total_steps), 1)
        if self.needs_total:
            self._check_total(self.total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _check_total(self, total_steps: int | None) -> None:
        name = type(self).__name__
        if total_steps is None:
            raise UserError(
                "the learning rate depends on the length of the run, which is not set",
                where=name,
                expected="a number of updates",
                fix="set trainer.max_steps, or the schedule's total_steps",
            )
        if self.warmup_steps >= total_steps and self.warmup_steps > 0:
            raise UserError(
                f"the warm-up takes {self.warmup_steps} updates, but the run has {total_steps}",
                where=name,
                expected="a warm-up shorter than the run",
                fix="lower `warmup_steps`, or train longer",
            )

    def get_lr(self) -> list[Any]:
        """The rate of each parameter group."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def progress(self, step: int) -> float:
        """How far `step` lies between the end of the warm-up (0) and the end of the run (1)."""
        if self.total_steps is None:
            if step == 0:  # the base class asks for the first rate before the run's length is known
                return 0.0
            raise RuntimeError(f"{type(self).__name__}: call set_total_steps before the second update")
        return min(step / max(self.total_steps - self.warmup_steps, 1), 1.0)


class CosineToFraction(Schedule):
    """A half cosine from the optimiser's rate down to a fraction of it at the end of the run.

    The paper's schedule for SFT and the reward model: to a tenth, without warm-up (InstructGPT, appendix C).

    Args:
        optimizer: the optimiser whose rates are set.
        final_fraction: fraction of the rate that is left when the run ends.
        warmup_steps: updates over which the rate first rises in a straight line.
        initial_fraction: fraction of the rate that the first update of the warm-up uses.
        total_steps: updates of the whole run; None takes the number that the module works out.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        final_fraction: float = 0.1,
        warmup_steps: int = 0,
        initial_fraction: float = 0.1,
        total_steps: int | None = None,
    ):
        require("a number from 0 to 1", f"{type(self).__name__}.", final_fraction=final_fraction)
        self.final_fraction = final_fraction
        super().__init__(optimizer, warmup_steps, initial_fraction, total_steps)

    def after_warmup(self, step: int) -> float:
        cosine = (1.0 + math.cos(math.pi * self.progress(step))) / 2.0
        return self.final_fraction + (1.0 - self.final_fraction) * cosine


class ConstantWithWarmup(Schedule):
    """The optimiser's own rate, after a straight rise from a fraction of it.

    The paper's schedule for PPO: from a tenth, over the first 10 of 500 iterations (InstructGPT, appendix C.4).

    Args:
        optimizer: the optimiser whose rates are set.
        warmup_steps: updates over which the rate rises in a straight line.
        initial_fraction: fraction of the rate that the first update uses.
        total_steps: not needed; the rate stays constant to whatever end.
    """

    needs_total = False

    def after_warmup(self, step: int) -> float:
        return 1.0


class LinearToZero(Schedule):
    """A straight line from the optimiser's rate to 0 at the end of the run (Stiennon et al. 2020, for PPO).

    Args:
        optimizer: the optimiser whose rates are set.
        warmup_steps: updates over which the rate first rises in a straight line.
        initial_fraction: fraction of the rate that the first update of the warm-up uses.
        total_steps: updates of the whole run; None takes the number that the module works out.
    """

    def after_warmup(self, step: int) -> float:
        return 1.0 - self.progress(step)

"""Warns when a metric leaves its healthy range or PPO's self-check fails."""

import math
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from instructlit.callbacks.common import numbers, wandb_runs
from instructlit.errors import UserError, nearest, require
from instructlit.modules.invariants import InvariantError

LIMITS: dict[str, list[float | None]] = {
    "ppo/objective/kl": [-1.0, 50.0],
    "ppo/policy/approx_kl": [None, 0.2],
    "ppo/policy/clip_fraction": [None, 0.5],
    "ppo/engine/gap": [None, 0.1],
    "ppo/policy/ratio_mean": [0.8, 1.2],
    "ppo/policy/entropy": [0.02, None],
    "ppo/response/eos_fraction": [0.3, None],
    "reward/val/accuracy": [0.5, None],
}
"""Bounds outside of which a run is not healthy whatever the task; docs/metrics.md says why and what to do."""


class InvariantAlerts(pl.Callback):
    """Warns when a metric is not finite or out of bounds; with W&B it also sends alerts, of a failed self-check too.

    Each metric warns once until it has returned to its range, so a bad hour gives one message. Nothing is stopped:
    PPO's own `max_kl` and `self_check` do that.

    Args:
        limits: metric to its lowest and highest healthy value, null for none; added to the built-in ones. A metric
            with [null, null] is only checked to be finite. One that is not logged by the first validation is named.
        wait_seconds: least time between two W&B alerts about one metric.
    """

    def __init__(self, limits: dict[str, list[float | None]] | None = None, wait_seconds: float = 300.0):
        require("a finite number, 0 or more", "InvariantAlerts.", wait_seconds=wait_seconds)
        self.limits = LIMITS | (limits or {})
        self._unseen = {name for name, bounds in (limits or {}).items() if set(bounds) != {None}}
        for name, bounds in self.limits.items():
            if len(bounds) != 2:
                raise UserError(
                    f"{name} has {len(bounds)} values",
                    where="InvariantAlerts.limits",
                    expected="two: [lowest, highest], null for none",
                )
        self.wait_seconds = wait_seconds
        self.outside: set[str] = set()
        self._told: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._look(trainer)
            self._tell_unseen(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell_unseen(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, InvariantError):
            # it ends the run, and that reports it
            self._alert(trainer, "self-check", "PPO's self-check failed", str(exception), "ERROR")

    def _tell_unseen(self, trainer: pl.Trainer) -> None:
        """Name once the metrics of the user's limits that are not there: one misspelt would never warn."""
        for name in sorted(self._unseen - trainer.callback_metrics.keys()):
            close = nearest(name, trainer.callback_metrics)
            hint = f"; did you mean {close}?" if close else ""
            rank_zero_warn(f"InvariantAlerts.limits: {name} has not been logged so far{hint}", category=UserWarning)
        self._unseen = set()

    def _look(self, trainer: pl.Trainer) -> None:
        for name, value in numbers(trainer.callback_metrics).items():
            low, high = self.limits.get(name, [None, None])
            if not math.isfinite(value):
                fault = f"{name} is {value}"
            elif low is not None and value < low:
                fault = f"{name} is {value:.4g}, below {low:g}"
            elif high is not None and value > high:
                fault = f"{name} is {value:.4g}, above {high:g}"
            else:
                self.outside.discard(name)
                continue
            if name not in self.outside:
                self.outside.add(name)
                text = f"At step {trainer.global_step}. What to do: docs/metrics.md, {name}."
                rank_zero_warn(f"{fault}. {text}", category=UserWarning)
                self._alert(trainer, name, fault, text, "WARN")

    def _alert(self, trainer: pl.Trainer, about: str, title: str, text: str, level: str) -> None:
        """An alert in W&B, where it is in use."""
        now = time.monotonic()
        if now - self._told.get(about, -math.inf) < self.wait_seconds:
            return
        self._told[about] = now
        for run in wandb_runs(trainer):
            run.alert(title=title, text=text, level=level)

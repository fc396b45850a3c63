"""Distributions in W&B, where a mean would hide what happens."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from instructlit.callbacks.common import gathered, logger_step, numbers, stage_name, wandb_loggers
from instructlit.callbacks.wandb_logger import X_AXES
from instructlit.errors import UserError, require
from instructlit.types import Rollout

MOST_BINS = 512
"""The limit of W&B."""


class WandbHistograms(pl.Callback):
    """Histograms under `<stage>/histogram/...`; without a W&B logger nothing happens.

    Of PPO's rollouts: `scores`, `kl` and `lengths` per response; `advantages`, `returns` and `values` per token.
    Of validation samples: `val_score`, `val_kl`, `val_length`. Of a reward model: `val_margin`, winner's minus loser's
    score per pair.

    Args:
        every_n_batches: batches from one histogram of a rollout to the next.
        bins: bars of a histogram, at most 512.
    """

    def __init__(self, every_n_batches: int = 10, bins: int = 64):
        require("a whole number above 0", "WandbHistograms.", every_n_batches=every_n_batches, bins=bins)
        if bins > MOST_BINS:
            raise UserError(f"found {bins}", where="WandbHistograms.bins", expected=f"at most {MOST_BINS}")
        self.every_n_batches, self.bins = every_n_batches, bins

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rollout = getattr(pl_module, "last_rollout", None)
        if isinstance(rollout, Rollout) and logger_step(trainer) % self.every_n_batches == 0:
            # Every rank gathers, though the first alone has W&B: it would wait for the others.
            values = {name: gathered(x.float().tolist()) for name, x in rollout_values(rollout).items()}
            self._log(trainer, pl_module, values)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        rows = gathered(getattr(pl_module, "validation_rows", []))
        found = {
            f"val_{name}": [row[name] for row in rows if row.get(name) is not None]
            for name in ("score", "kl", "length")
        }
        pairs = getattr(getattr(pl_module, "validation_pairs", None), "difference", None)
        if pairs is not None:
            found["val_margin"] = gathered([x for part in pairs for x in torch.as_tensor(part).flatten().tolist()])
        self._log(trainer, pl_module, found)

    def _log(self, trainer: pl.Trainer, module: pl.LightningModule, values: dict[str, list[float]]) -> None:
        for logger in wandb_loggers(trainer):
            import wandb

            found = {
                f"{stage_name(module)}/histogram/{name}": wandb.Histogram(x, num_bins=self.bins)
                for name, x in values.items()
                if x and all(map(math.isfinite, x))
            }
            if found:
                # The logger knows the axis from the row it wrote last, and that of this batch is yet to come.
                metrics = numbers(trainer.callback_metrics)
                axes = {axis: metrics[axis] for axis in X_AXES.values() if axis in metrics}
                logger.log_metrics(found | axes, step=logger_step(trainer))  # type: ignore[arg-type]


def rollout_values(rollout: Rollout) -> dict[str, Tensor]:
    """One-dimensional values of a rollout, padding left out."""
    mask = rollout.response_mask
    return {
        "scores": rollout.scores,
        "kl": ((rollout.old_log_probs - rollout.ref_log_probs) * mask).sum(dim=1),
        "lengths": mask.sum(dim=1),
        "advantages": rollout.advantages[mask],
        "returns": rollout.returns[mask],
        "values": rollout.values[mask],
    }

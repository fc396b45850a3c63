"""The Trainer and the clock of the workloads that train."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from instructlit.callbacks import CSVLogger
from instructlit.cli.fit import quiet

from .work import Work


def train(
    work: Work, folder: Path, clock: pl.Callback, module: pl.LightningModule, data: pl.LightningDataModule
) -> pl.Trainer:
    """One epoch on one device, every step logged to a file, as in a normal run; nothing on stdout."""
    quiet()
    with contextlib.redirect_stdout(sys.stderr):
        trainer = pl.Trainer(
            accelerator="gpu" if work.device == "cuda" else "cpu",
            devices=1,
            plugins=[LightningEnvironment()],  # one process, whatever SLURM or torchrun have set
            precision=work.precision,  # type: ignore[arg-type]
            logger=CSVLogger(str(folder)),
            log_every_n_steps=1,
            max_epochs=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[clock],
            default_root_dir=folder,
        )
        trainer.fit(module, data)
    return trainer


class Clock(pl.Callback):
    """Seconds from the first batch to the end of training, those of the second half of the steps, after one-off work,
    and metrics at every step.

    Args:
        work: gives the clock.
        metrics: the names they are logged under, by the names that a report has for them.
    """

    def __init__(self, work: Work, **metrics: str):
        self.work, self.metrics = work, metrics
        self.seconds = self.started = self.later_s = 0.0
        self.steps = 0
        self.later = 0  # the first step of the second half
        self.values: dict[str, list[torch.Tensor]] = {name: [] for name in metrics}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self._halfway = self.work.now()
        self.later = int(trainer.num_training_batches) // 2

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        for name, metric in self.metrics.items():
            self.values[name].append(trainer.callback_metrics[metric])
        self.steps += 1
        if self.steps == self.later:
            self._halfway = self.work.now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = self.work.now()
        self.seconds, self.later_s = now - self.started, now - self._halfway

    def figures(self) -> dict[str, Any]:
        """Seconds, and the first and last value of each metric."""
        found = {
            "seconds": round(self.seconds, 4),
            "prep_s": round(self.started - self.work.began, 2),
            "steps": self.steps,
            "step_ms": round(1000 * self.later_s / max(1, self.steps - self.later), 2),
        }
        for name, values in self.values.items():
            found |= {f"{name}_first": round(float(values[0]), 4), f"{name}_last": round(float(values[-1]), 4)}
        return found

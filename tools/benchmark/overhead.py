"""The overhead of a step: fine-tuning through the Trainer, with five metrics logged at every step, minus a bare loop
over the same batches with the same forward and backward passes, clipping and optimiser steps. In CPU seconds of this
process, so run it with one thread."""

import statistics
import time
from typing import Any

import lightning.pytorch as pl
from torch import nn

from instructlit.data import DemonstrationData
from instructlit.models.schedules import LinearToZero
from instructlit.models.token_scores import target_log_probs
from instructlit.modules import SFTModule

from .sft import adamw
from .training import train
from .work import Work

ROUNDS = 3


class _Seconds(pl.Callback):
    """CPU seconds of training."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.spent = -time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.spent += time.process_time()


def run(work: Work) -> dict[str, Any]:
    size = work.batch_size or 4
    whole, bare, steps = [], [], 0
    for _ in range(ROUNDS):  # alternating, so that other load on the machine affects both
        clock = _Seconds()
        with work.files() as (folder, file):
            data = work.in_order(DemonstrationData)(
                work.model, str(file), validation_fraction=0.0, batch_size=size, template="plain"
            )
            module = SFTModule(work.backbone(work.model), optimizer=adamw, lr_scheduler=LinearToZero)
            steps = train(work, folder, clock, module, data).global_step
            whole.append(1000 * clock.spent / steps)
            bare.append(1000 * _bare(work, data, steps) / steps)
    beside = [a - b for a, b in zip(whole, bare, strict=True)]
    return {
        "steps": steps,
        "step_ms": round(statistics.median(whole), 3),
        "bare_ms": round(statistics.median(bare), 3),
        "overhead_ms": round(statistics.median(beside), 3),
        "overhead_ms_all": [round(ms, 3) for ms in beside],
    }


def _bare(work: Work, data: DemonstrationData, steps: int) -> float:
    """CPU seconds of the same work in a loop that does nothing else."""
    module = SFTModule(work.backbone(work.model))
    module.configure_model()
    model = module.trained_model.train()
    optimizer = adamw(model.parameters())
    schedule = LinearToZero(optimizer)
    schedule.set_total_steps(steps)
    began = time.process_time()
    for batch in data.train_dataloader():
        loss = -target_log_probs(model, batch).sum() / batch.loss_mask[:, 1:].sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return time.process_time() - began

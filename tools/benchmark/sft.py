"""Supervised fine-tuning: AdamW at 1e-4 falling to 0, gradients clipped at 1, 16 demonstrations a step."""

from typing import Any

import torch

from instructlit.data import DemonstrationData
from instructlit.models.backbone import Backbone
from instructlit.models.schedules import LinearToZero
from instructlit.modules import SFTModule

from .training import Clock, train
from .work import Work

RATE = 1e-4


def run(work: Work) -> dict[str, Any]:
    size = work.batch_size or 16
    clock = Clock("sft/train/loss")
    with work.files() as (folder, file):
        data = work.in_order(DemonstrationData)(
            work.model, str(file), validation_fraction=0.0, batch_size=size, template="plain"
        )
        module = SFTModule(Backbone(work.model), optimizer=adamw, lr_scheduler=LinearToZero)
        train(work, folder, clock, module, data)
        split = data.splits["train"]
        chosen = work.order(len(split.rows))[: len(clock.values) * size]
        tokens = int(split.lengths[chosen].sum())  # type: ignore[index]
    return {
        **clock.figures(work),
        "tokens": tokens,
        "tokens_per_s": round(tokens / clock.seconds, 1),
        "examples_per_s": round(len(chosen) / clock.seconds, 2),
    }


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)

"""Supervised fine-tuning: AdamW at 1e-4 falling to 0, gradients clipped at 1, 16 demonstrations a step."""

from typing import Any

import numpy as np
import torch

from instructlit.data import DemonstrationData
from instructlit.models.schedules import LinearToZero
from instructlit.modules import SFTModule

from .training import Clock, train
from .work import Work

RATE = 1e-4


def run(work: Work) -> dict[str, Any]:
    size = work.batch_size or 16
    clock = Clock(work, loss="sft/train/loss")
    with work.files() as (folder, file):
        data = work.in_order(DemonstrationData)(
            work.model, str(file), validation_fraction=0.0, batch_size=size, template="plain"
        )
        module = SFTModule(work.backbone(work.model), optimizer=adamw, lr_scheduler=LinearToZero)
        train(work, folder, clock, module, data)
        split = data.splits["train"]
        chosen = work.order(len(split.rows))[: clock.steps * size]
        lengths = split.lengths[chosen].astype(np.float64)  # type: ignore[index]
    tokens, later = int(lengths.sum()), lengths[clock.later * size :]
    return {
        **clock.figures(),
        "tokens": tokens,
        "tokens_per_s": round(tokens / clock.seconds, 1),
        "model_tflops_per_s": float(f"{model_flops(module.trained_model, later) / clock.later_s / 1e12:.4g}"),
        "examples_per_s": round(len(chosen) / clock.seconds, 2),
    }


def model_flops(model: Any, lengths: np.ndarray) -> float:
    """Floating-point operations that training on rows of these lengths needs, not counting recomputation and padding.

    6 x parameters x tokens + 12 x layers x width x (sum of squared lengths) / 2: two operations a weight and token
    forward and four backward, without an embedding that is only looked up; and for attention two products forward and
    four backward over the width of all heads together, halved by the causal mask. The head is counted for all tokens,
    prompts included, as is usual, though it is only computed for those that have a target.
    Source: Chowdhery et al. 2022 (PaLM), appendix B, arXiv 2204.02311; there without the half.
    """
    config = model.config
    looked_up, head = model.get_input_embeddings(), model.get_output_embeddings()
    weights = sum(p.numel() for p in model.parameters())
    if head is None or head.weight is not looked_up.weight:
        weights -= looked_up.weight.numel()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 12 * config.num_hidden_layers * width * float((lengths**2).sum()) / 2
    return 6 * weights * float(lengths.sum()) + attention


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)

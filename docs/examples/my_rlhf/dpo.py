"""Direct preference optimisation on comparisons (Rafailov et al. 2023, arXiv 2305.18290)."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from instructlit.losses import comparison_pairs, pair_accuracy, pair_margins, ranking_loss
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.models.dropout import disable_dropout
from instructlit.models.export import export_folder
from instructlit.models.schedules import Schedule
from instructlit.ops.log_probs import next_token_log_probs
from instructlit.types import ComparisonBatch


class DPO(pl.LightningModule):
    """The ranking loss of a reward model whose score is beta * (log p(policy) - log p(reference)) of a completion.

    With two completions a prompt it is the paper's equation 7; with more, all pairs of a prompt count as one.

    Args:
        policy: the SFT model, to be trained; the reference is the same folder, frozen.
        beta: strength of the tie to the reference.
        optimizer: the optimiser.
        lr_scheduler: the schedule, in optimiser steps; None keeps the learning rate.
    """

    stage = "dpo"

    def __init__(
        self,
        policy: Backbone,
        beta: float = 0.1,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-7, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__()
        self.backbone, self.beta = policy, beta
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.policy: nn.Module | None = None
        self.frozen: list[nn.Module] = []  # in a list: Lightning shall neither save nor train the reference

    def configure_model(self) -> None:
        if self.policy is None:
            self.policy = load_causal_lm(self.backbone, "policy")
            self.frozen = [load_causal_lm(self.backbone, "policy").requires_grad_(False).eval()]
            disable_dropout(self.policy)

    def on_fit_start(self) -> None:
        self.frozen[0].to(self.device)

    on_validation_start = on_fit_start

    def configure_optimizers(self) -> Any:
        assert self.policy is not None
        optimizer = self.make_optimizer(self.policy.parameters())
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        if isinstance(scheduler, Schedule):
            scheduler.set_total_steps(int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def scores(self, batch: ComparisonBatch) -> Tensor:
        """The implicit reward of each completion, (N,) float32; its gradient is the policy's."""
        assert self.policy is not None
        with torch.no_grad():
            reference = completion_log_probs(self.frozen[0], batch)
        return self.beta * (completion_log_probs(self.policy, batch) - reference)

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        self._loss(batch, "val")

    def _loss(self, batch: ComparisonBatch, split: str) -> Tensor:
        scores = self.scores(batch)
        loss = ranking_loss(scores, batch.prompt_index, batch.ranks)
        margins = pair_margins(scores.detach(), comparison_pairs(batch.prompt_index, batch.ranks))
        options: dict[str, Any] = {"on_step": split == "train", "on_epoch": split == "val", "sync_dist": split == "val"}
        self.log(f"dpo/{split}/loss", loss.mean(), batch_size=int(loss.count), prog_bar=True, **options)
        if len(margins):
            accuracy = pair_accuracy(margins).mean()
            self.log(f"dpo/{split}/accuracy", accuracy, batch_size=len(margins), **options)
            self.log(f"dpo/{split}/margin", margins.mean(), batch_size=len(margins), **options)
        return loss.mean()

    def parents(self) -> dict[str, str]:
        """What an exported folder says it was made from."""
        return {"policy": self.backbone.path}

    def export(self, path: str | Path, record: dict[str, Any]) -> list[Path]:
        """Called by `ExportHuggingFace` at the end of a run."""
        assert self.policy is not None
        return [export_folder(self.policy, self.trainer.datamodule.tokenizer, path, record)]  # type: ignore[attr-defined]


def completion_log_probs(model: nn.Module, batch: ComparisonBatch) -> Tensor:
    """Log-probability in nats of each completion given its prompt, (N,) float32, EOS included."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False).logits
    return (next_token_log_probs(logits, batch.input_ids) * batch.response_mask[:, 1:]).sum(dim=1)

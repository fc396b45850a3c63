"""Supervised fine-tuning on demonstrations, and pretraining: both minimise the loss on the counted tokens."""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from instructlit.losses import target_loss
from instructlit.models.backbone import Backbone, load_causal_lm
from instructlit.models.schedules import CosineToFraction
from instructlit.models.token_scores import target_log_probs, target_scores
from instructlit.modules.base import StageModule
from instructlit.modules.mean import Mean
from instructlit.modules.nonfinite import NonFinite
from instructlit.ops.log_probs import token_log_probs
from instructlit.types import TokenBatch


class SFTModule(StageModule):
    """Next-token loss on the tokens a `TokenBatch` counts: completions of demonstrations, or all text in pretraining.

    The paper (p. 40-41): 16 epochs, cosine to 10 % without warm-up, residual dropout 0.2, and the checkpoint chosen by
    reward-model score rather than validation loss.

    Args:
        policy: the model to train.
        optimizer: the optimiser; by default AdamW with learning rate 9.65e-6, betas 0.9 and 0.95, no weight decay.
        lr_scheduler: the schedule; by default cosine to 10 % of the learning rate.
        micro_batch_size: sequences in one forward and backward; None takes the whole batch at once.
        micro_batch_tokens: most tokens in one forward and backward, padding included where rows are not packed; a
            longer row goes alone.
        gradient_clip_norm: largest gradient norm of a step; None does not clip.
        nonfinite: what to do at a step whose loss or gradient is NaN or infinite.
        metric_prefix: first part of every metric's name, `sft` or `pretrain`.
    """

    stage = "sft"
    batch_kind = TokenBatch

    def __init__(
        self,
        policy: Backbone,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(
            p, lr=9.65e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
        lr_scheduler: LRSchedulerCallable | None = CosineToFraction,
        micro_batch_size: int | None = None,
        micro_batch_tokens: int | None = None,
        gradient_clip_norm: float | None = 1.0,
        nonfinite: NonFinite = NonFinite(),  # noqa: B008 - a set of values, and what --help shows
        metric_prefix: str = "sft",
    ):
        super().__init__(optimizer, lr_scheduler, micro_batch_size, gradient_clip_norm, nonfinite, micro_batch_tokens)
        self.backbone = policy
        self.metric_prefix = metric_prefix
        self.policy: nn.Module | None = None
        self.validation_loss = Mean()
        self.validation_accuracy = Mean()

    @property
    def trained_model(self) -> nn.Module:
        assert self.policy is not None
        return self.policy

    def configure_model(self) -> None:
        if self.policy is None:
            where = "model.init_args.policy"
            self.policy = self.placed(load_causal_lm(self.backbone, where), where)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> None:
        loss, count = self.accumulate_tokens(batch)
        lr = self.learning_rate()
        (norm,) = self.step_optimizer([self.trained_model], {"the loss": loss})
        self.log_dict(
            {
                f"{self.metric_prefix}/train/loss": loss,
                f"{self.metric_prefix}/train/gradient_norm": norm,
                f"{self.metric_prefix}/train/tokens": count,
                f"{self.metric_prefix}/train/skipped_steps": float(self.guard.skipped),
                f"{self.metric_prefix}/lr": lr,
            }
        )

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        for part in self.in_step(self.token_micro_batches(batch)):
            log_probs, hits = target_scores(self.trained_model, part, _log_probs_and_hits).unbind(-1)
            loss = target_loss(log_probs, part.loss_mask[:, 1:])
            self.validation_loss.update(loss.total, loss.count)
            self.validation_accuracy.update(hits.sum(), loss.count)
        self.log(f"{self.metric_prefix}/{self.held_out}/loss", self.validation_loss, prog_bar=True)
        self.log(f"{self.metric_prefix}/{self.held_out}/token_accuracy", self.validation_accuracy)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Mean log-prob of each row's counted tokens, (B,)."""
        log_probs = target_log_probs(self.trained_model, batch)
        return log_probs.sum(dim=1) / batch.loss_mask[:, 1:].sum(dim=1).clamp_min(1)


def _log_probs_and_hits(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-prob of each id, and 1 where it is the likeliest."""
    return torch.stack([token_log_probs(logits, ids), (logits.argmax(-1) == ids).float()], dim=-1)

"""The reward model, trained on all pairs of a prompt's ranked completions at once (arXiv 2203.02155, equation 1)."""

import math
from collections.abc import Iterator

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from instructlit.errors import UserError, require
from instructlit.losses import LossSum, ranking_loss
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.ranks import on_every_rank
from instructlit.models.scalar import ScalarModel
from instructlit.models.schedules import CosineToFraction
from instructlit.modules.base import StageModule
from instructlit.modules.batches import check_batch
from instructlit.modules.nonfinite import NonFinite
from instructlit.modules.reward_metrics import PairMetrics
from instructlit.ops.micro_batches import spans
from instructlit.types import ComparisonBatch, TokenBatch


class RewardModule(StageModule):
    """K-way ranking loss, each prompt read once for all its completions; a shift makes the mean score of the
    demonstrations 0 (p. 9).

    The paper (p. 41-42): one epoch, learning rate 9e-6, cosine to 10 %, 64 prompts a batch. More epochs overfit.

    Args:
        model: the backbone; a causal language model gets a fresh scalar head.
        optimizer: the optimiser; by default AdamW with learning rate 9e-6, betas 0.9 and 0.95, no weight decay.
        lr_scheduler: the schedule; by default cosine to 10 % of the learning rate.
        micro_batch_size: prompts, with all their completions, in one forward and backward; None takes the whole batch.
        micro_batch_tokens: most tokens, padding included, in one forward and backward; a prompt with more goes alone.
        gradient_clip_norm: largest gradient norm of a step; None does not clip.
        nonfinite: what to do at a step whose loss or gradient is NaN or infinite.
        shift_batches: most batches of demonstrations read for the shift; None reads all.
        shared_prefix: compute the prefix that a prompt's completions share once instead of once per completion: the
            same scores for less work. Needs `sdpa` attention and an architecture with position ids; by default it is on
            if both are available.
    """

    stage = "reward"
    asks_data_for = ("tokenizer", "demonstration_dataloader")
    batch_kind = ComparisonBatch

    def __init__(
        self,
        model: Backbone,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(
            p, lr=9e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
        lr_scheduler: LRSchedulerCallable | None = CosineToFraction,
        micro_batch_size: int | None = None,
        micro_batch_tokens: int | None = None,
        gradient_clip_norm: float | None = 1.0,
        nonfinite: NonFinite = NonFinite(),  # noqa: B008 - a set of values, and what --help shows
        shift_batches: int | None = None,
        shared_prefix: bool | None = None,
    ):
        super().__init__(optimizer, lr_scheduler, micro_batch_size, gradient_clip_norm, nonfinite, micro_batch_tokens)
        require("a whole number above 0", "model.init_args.", shift_batches=shift_batches)
        self.backbone = model
        self.shift_batches, self.shared_prefix = shift_batches, shared_prefix
        self.model: ScalarModel | None = None
        self.validation_pairs = PairMetrics()

    def backbones(self) -> dict[str, Backbone]:
        return {"model.init_args.model": self.backbone}

    @property
    def trained_model(self) -> ScalarModel:
        assert self.model is not None
        return self.model

    def configure_model(self) -> None:
        if self.model is None:
            where = "model.init_args.model"
            self.model = self.placed(load_scalar_model(self.backbone, where=where), where)

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        count = self.sum_over_ranks(ranking_loss(self._no_scores(batch), batch.prompt_index, batch.ranks).count.float())
        seen = PairMetrics().to(self.device)

        def loss(part: ComparisonBatch) -> LossSum:
            scores = self._scores(part)
            seen.update(scores.detach(), part)
            return ranking_loss(scores, part.prompt_index, part.ranks)

        mean_loss = self.accumulate(self._micro_batches(batch), loss, count)
        lr = self.learning_rate()
        (norm,) = self.step_optimizer([self.trained_model], {"the loss": mean_loss})
        self.log_dict(
            {
                "reward/train/loss": mean_loss,
                "reward/train/accuracy": seen.compute().get("accuracy", math.nan),  # of ties alone there is no share
                "reward/train/gradient_norm": norm,
                "reward/train/skipped_steps": float(self.guard.skipped),
                "reward/lr": lr,
            }
        )

    def on_validation_epoch_start(self) -> None:
        self.validation_pairs.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        for part in self.in_step(self._micro_batches(batch)):
            self.validation_pairs.update(self._scores(part), part)

    def on_validation_epoch_end(self) -> None:
        self._log_pairs()
        if not self.trainer.sanity_checking:
            # Differences between scores are blind to it, so it may move at any time; a checkpoint then always holds it.
            self.centre_on_demonstrations()

    def on_train_end(self) -> None:
        self.centre_on_demonstrations()

    def test_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def _log_pairs(self) -> None:
        for names in on_every_rank(self.validation_pairs.names):  # those whose pairs were all on other ranks too
            self.validation_pairs.names |= names
        figures = self.validation_pairs.compute()
        self.log_dict({f"reward/{self.held_out}/{name}": value for name, value in figures.items()}, sync_dist=False)

    on_test_epoch_end = _log_pairs

    def predict_step(self, batch: ComparisonBatch, batch_idx: int) -> Tensor:
        """Scores of the completions, (N,)."""
        return self._scores(batch)

    @torch.no_grad()
    def centre_on_demonstrations(self) -> None:
        """Set the model's shift so that the mean score of the demonstrations is 0; nothing happens without any.

        Raises:
            UserError: the mean is not finite.
        """
        loader = self.trainer.datamodule.demonstration_dataloader()  # type: ignore[attr-defined]
        if loader is None:
            return
        model = self.trained_model
        training = model.training
        model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for index, batch in enumerate(loader):
            if self.shift_batches is not None and index >= self.shift_batches:
                break
            check_batch(batch, TokenBatch, "a batch of demonstrations")
            batch = batch.to(self.device)
            with self.trainer.precision_plugin.forward_context():  # as in a step: Lightning leaves these hooks without
                scores = model.score(batch.input_ids, batch.attention_mask)
            total += torch.stack([scores.double().sum(), torch.tensor(len(scores), device=self.device)])
        model.train(training)
        total = self.sum_over_ranks(total)
        mean = float(total[0] / total[1])
        if not math.isfinite(mean):
            fault = UserError(
                f"the mean score of the demonstrations is {mean}",
                where="data.init_args.demonstrations",
                expected="a finite number, for the model's shift",
                fix="the model has diverged: lower the learning rate",
            )
            fault.on_all_ranks = True
            raise fault
        model.set_shift(float(model.shift) - mean)

    def _micro_batches(self, batch: ComparisonBatch) -> Iterator[ComparisonBatch]:
        lengths, owner = batch.attention_mask.sum(dim=1).tolist(), batch.prompt_index.tolist()

        def padded(start: int, stop: int) -> int:
            rows = [length for length, prompt in zip(lengths, owner, strict=True) if start <= prompt < stop]
            return len(rows) * max(rows)

        for start, stop in spans(len(batch), self.micro_batch_size, self.micro_batch_tokens, padded):
            yield batch.prompts(start, stop)

    def _scores(self, part: ComparisonBatch) -> Tensor:
        model = self.trained_model
        if model.can_branch if self.shared_prefix is None else self.shared_prefix:
            return model.score_branches(part.input_ids, part.attention_mask, part.prompt_index)
        return model.score(part.input_ids, part.attention_mask)

    @staticmethod
    def _no_scores(batch: ComparisonBatch) -> Tensor:
        return torch.zeros(len(batch.ranks), device=batch.ranks.device)

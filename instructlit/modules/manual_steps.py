"""One optimiser step by hand: micro-batches forward and backward, the gradient clipped, the optimiser stepped.

A deviation from Lightning's habit, with its reason: the loss of a step is a sum over all its micro-batches and ranks
divided by one global count, which automatic accumulation (a mean of means) cannot give.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, Self, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from instructlit.errors import require
from instructlit.losses import LossSum, target_loss
from instructlit.models.packed import can_pack
from instructlit.models.token_scores import target_log_probs
from instructlit.modules.gradients import clip_gradient, sum_gradients
from instructlit.modules.nonfinite import NonFinite, StepGuard
from instructlit.modules.settings import step
from instructlit.ops.micro_batches import computed_tokens, spans
from instructlit.types import TokenBatch


class MicroBatch(Protocol):
    """Some rows of a batch."""

    def blank(self) -> Self:
        """The same number of rows, in which nothing counts."""
        ...


B = TypeVar("B", bound=MicroBatch)


class ManualSteps(pl.LightningModule):
    """What a training step is made of: `accumulate` for each of its losses, then `step_optimizer`.

    Args: as in `StageModule`.
    """

    def __init__(
        self,
        micro_batch_size: int | None,
        micro_batch_tokens: int | None,
        gradient_clip_norm: float | None,
        nonfinite: NonFinite,
    ):
        super().__init__()
        micro = {"micro_batch_size": micro_batch_size, "micro_batch_tokens": micro_batch_tokens}
        require("a whole number above 0", "model.init_args.", **micro)
        require("a finite number above 0", "model.init_args.", gradient_clip_norm=gradient_clip_norm)
        self.automatic_optimization = False
        self.micro_batch_size, self.micro_batch_tokens = micro_batch_size, micro_batch_tokens
        self.gradient_clip_norm = gradient_clip_norm
        self.guard = StepGuard(nonfinite)

    @property
    @abstractmethod
    def trained_model(self) -> nn.Module:
        """The model that leaves the stage."""

    @property
    def sharded(self) -> bool:
        """Whether models are sharded over the ranks, so that every forward and backward is a collective."""
        return self._trainer is not None and isinstance(self._trainer.strategy, ModelParallelStrategy)

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks; `x` itself on one."""
        if self.trainer.world_size == 1:
            return x
        return self.trainer.strategy.reduce(x, reduce_op="sum")  # type: ignore[return-value]

    def in_step(self, parts: Iterable[B]) -> list[B]:
        """This rank's micro-batches; if models are sharded, blank ones follow until all ranks have as many."""
        parts = list(parts)
        if self.sharded:  # agreed on before the first of them: ranks that have begun cannot ask any more
            most = self.trainer.strategy.reduce(torch.tensor(len(parts), device=self.device), reduce_op="max")
            parts += [parts[-1].blank()] * (int(most) - len(parts))
        return parts

    def accumulate(
        self, parts: Iterable[B], loss: Callable[[B], LossSum], count: Tensor, weight: float = 1.0
    ) -> Tensor:
        """Add the gradient of weight * (sum of the losses / count) over micro-batches; returns the mean over ranks.

        Args:
            parts: this rank's micro-batches of the step.
            loss: gives a micro-batch's `LossSum`; only its total is used.
            count: what all micro-batches of all ranks count together.
            weight: factor on the gradient, not on the value returned.
        """
        count = count.clamp_min(1)
        total = torch.zeros((), dtype=torch.float32, device=self.device)  # under bf16-true the default has 16 bits
        for part in self.in_step(parts):
            part_total = loss(part).total
            self._backward(part_total * weight / count)
            total += part_total.detach()
        return self.sum_over_ranks(total) / count

    def accumulate_tokens(self, batch: TokenBatch, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """`accumulate` for the next-token loss on a batch of text: the loss, and the tokens it is the mean over."""
        count = self.sum_over_ranks(batch.loss_mask[:, 1:].sum().float())
        return self.accumulate(self.token_micro_batches(batch), self.token_loss, count, weight), count

    def token_loss(self, part: TokenBatch) -> LossSum:
        """Next-token loss of the trained model on the tokens that `part` counts."""
        return target_loss(target_log_probs(self.trained_model, part), part.loss_mask[:, 1:])

    def token_micro_batches(self, batch: TokenBatch) -> Iterator[TokenBatch]:
        """`batch` as `micro_batch_size` and `micro_batch_tokens` cut it."""
        lengths = batch.attention_mask.sum(dim=1).tolist()
        computed = computed_tokens(lengths, packed=can_pack(self.trained_model, batch.input_ids.device))
        for start, stop in spans(len(batch), self.micro_batch_size, self.micro_batch_tokens, computed):
            yield batch.rows(slice(start, stop))

    def step_optimizer(self, models: Iterable[nn.Module], losses: Mapping[str, Tensor]) -> list[Tensor]:
        """Clip each model's gradient on its own, step optimiser and schedule; returns the norms before clipping.

        Args:
            models: those whose parameters are updated.
            losses: the step's losses () over all ranks, by name. Where one of them or a norm is not finite the step is
                not taken, as `nonfinite` says, and `guard.in_a_row` is above 0.
        """
        models = list(models)
        root = self.trainer.strategy.model
        if isinstance(root, DistributedDataParallel):
            sum_gradients(models)
        optimizer = self.optimizers()
        # Of shards that are kept on the host it is there, beside losses on a GPU.
        norms = [clip_gradient(root, model, self.gradient_clip_norm).to(self.device) for model in models]
        figures = {**losses, **{f"gradient norm {i}": norm for i, norm in enumerate(norms, start=1)}}
        taken = self.guard.passes(figures, self.trainer.global_step, self._batch_in_use)
        if taken:
            optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        if taken and (scheduler := self.lr_schedulers()):
            step(scheduler)  # type: ignore[arg-type]
        return norms

    def _backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's share of a loss that is a sum over ranks."""
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            # DDP's own reduction wants every parameter in every backward and as many of them on every rank. A step here
            # is several (micro-batches, policy, text, value), so the ranks add up once, in `step_optimizer`.
            with model.no_sync():
                self.manual_backward(loss)
        else:
            # Strategies that shard average gradients over the ranks; the world size turns that into the sum.
            self.manual_backward(loss * self.trainer.world_size)

    def _batch_in_use(self) -> str:
        """The rows of this batch as file and lines, where the datamodule knows them; else its number."""
        told = getattr(self.trainer.datamodule, "batch_in_use", None)  # type: ignore[attr-defined]
        return told() if told is not None else f"training batch {self.trainer.fit_loop.batch_idx}"

    def learning_rate(self) -> float:
        """The current learning rate of the first parameter group."""
        return float(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

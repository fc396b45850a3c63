"""What the three stages share: their hooks, what they save and export, and in which order. `manual_steps` takes a step.

A run, in the order of Lightning's calls; a star marks what each stage implements itself:

      configure_callbacks       refuses unsuitable Trainer options, adds the callbacks that guard a run
      setup                     refuses models that do not go with the tokenizer or the rows
    * configure_model           loads the models; `placed` shards them over ranks
      on_load_checkpoint        restores a stopped run; under sharding after `on_fit_start`
      configure_optimizers
      on_train_start
      for each batch:
          on_train_batch_start  refuses a batch of another type, restores the random state of a checkpoint
        * training_step         `accumulate` over micro-batches, once for each loss, `step_optimizer`, `log_dict`
          on_train_batch_end    refuses a loss that was returned and not learned from
      on_validation_start       saves the random state, which `on_validation_end` restores
      on_save_checkpoint
      export                    what leaves the stage: called by `ExportHuggingFace`
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Number
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from instructlit.errors import UserError
from instructlit.models.adapters import frozen_state_names
from instructlit.models.architecture import check_trainable
from instructlit.models.backbone import Backbone
from instructlit.models.compatibility import check_positions, check_vocabulary
from instructlit.models.export import export_folder
from instructlit.models.ranks import on_every_rank
from instructlit.models.sharded_optimizer import over_shards
from instructlit.models.sharding import shard
from instructlit.modules.batches import check_batch
from instructlit.modules.lifeline import Lifeline
from instructlit.modules.manual_steps import ManualSteps
from instructlit.modules.narrow_weights import tell_narrow_weights
from instructlit.modules.nonfinite import NonFinite
from instructlit.modules.random_state import own_share, random_state, restore_random_state
from instructlit.modules.refusals import (
    check_backbone,
    check_class,
    check_datamodule,
    check_optimizer,
    check_schedule,
    check_trainer,
)
from instructlit.modules.rescue import Rescue, have_validated_again
from instructlit.modules.savable import check_savable
from instructlit.modules.settings import advance, with_own_settings
from instructlit.modules.step_log import log_again
from instructlit.modules.strategy import FSDP2Strategy
from instructlit.modules.turns import Turns
from instructlit.modules.unvalidated import tell_unvalidated
from instructlit.types import Batch

M = TypeVar("M", bound=nn.Module)

UNUSUAL_ROWS = 1024
"""Rows of an embedding beyond the tokenizer's ids that are more than padding to a round number."""


class StageModule(ManualSteps):
    """Base of the stages: optimiser and schedule by factory, gradient accumulation by global count, resumable state.

    Args:
        optimizer: makes the optimiser from parameters or parameter groups.
        lr_scheduler: makes the schedule from the optimiser; None keeps the learning rate constant. One with a
            `set_total_steps` method gets the number of optimiser steps of the run, or None if unknown.
        micro_batch_size: rows of a batch in one forward and backward; None takes the whole batch at once.
        micro_batch_tokens: most tokens in one forward and backward, padding included where rows are not packed;
            None sets no limit.
        gradient_clip_norm: largest gradient norm of a step; None does not clip.
        nonfinite: what happens at a step whose loss or gradient is NaN or infinite.
    """

    stage: str
    """Its name in checkpoints, and the first part of the names of its metrics; by default the class's own name in lower
    case, without `Module`."""
    backbone: Backbone
    """Where the trained model came from."""
    asks_data_for: tuple[str, ...] = ("tokenizer",)
    """What the datamodule must have besides its dataloaders."""
    batch_kind: type[Batch] | None = None
    """What its dataloaders yield; None, for a user's own stages, is not checked."""

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        micro_batch_size: int | None,
        gradient_clip_norm: float | None,
        nonfinite: NonFinite = NonFinite(),  # noqa: B008 - a set of values, and what --help shows
        micro_batch_tokens: int | None = None,
    ):
        super().__init__(micro_batch_size, micro_batch_tokens, gradient_clip_norm, nonfinite)
        check_class(type(self))
        if not hasattr(self, "stage"):
            self.stage = type(self).__name__.removesuffix("Module").lower()
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self._random_state: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None  # the random state, while a validation runs
        self._updates_done = 0  # before this process
        self._steps_before = 0  # optimiser steps before the batch at hand

    # -- what describes a stage -------------------------------------------------------------------------------------

    @property
    def updates_per_batch(self) -> int:
        """Optimiser steps of one training batch."""
        return 1

    @property
    def held_out(self) -> str:
        """The part of a held-out metric's name after the stage's: `val`, or `test` in a test."""
        return "test" if self.trainer.testing else "val"

    def total_updates(self) -> int | None:
        """Optimiser steps of the whole run, for the schedule; None if unknown, as with `max_time` alone."""
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if 0 <= steps < math.inf else None

    def backbones(self) -> dict[str, Backbone]:
        """The models that read the tokenizer's ids, by the option that names them."""
        return {"model.init_args.policy": self.backbone}

    def trained_backbones(self) -> dict[str, Backbone]:
        """Those of `backbones` whose models are trained."""
        return self.backbones()

    def row_lengths(self) -> dict[str, int]:
        """Most tokens of a row that the models read, by the options that bound it."""
        told = getattr(self.trainer.datamodule, "row_lengths", dict)()  # type: ignore[attr-defined]
        return {f"data.init_args.{option}": tokens for option, tokens in told.items()}

    def parents(self) -> dict[str, str]:
        """The models this stage was made from: role to folder or Hub name."""
        return {"init": self.backbone.path}

    def progress(self) -> tuple[int, int | None, str]:
        """How far the run is: done, total (None if unknown) and the unit."""
        return self.trainer.global_step, self.total_updates(), "step"

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is made from."""
        return [{"params": [p for p in self.trained_model.parameters() if p.requires_grad]}]

    def export(self, path: str | Path, record: dict[str, Any], merge: bool = True) -> list[Path]:
        """Write what leaves the stage as Hugging Face folders, adapters merged or alone; the main one first."""
        record = record | {"weights": "raw"}
        return [export_folder(self.trained_model, self.tokenizer, Path(path), record, merge=merge)]

    def export_folders(self, path: str | Path) -> list[Path]:
        """The folders that `export` writes."""
        return [Path(path)]

    def stateful(self) -> dict[str, Any]:
        """Parts that may be a user's own and whose `state_dict` goes into checkpoints, by their option."""
        return {"data.class_path": self.trainer.datamodule}  # type: ignore[attr-defined]

    # -- models over ranks -----------------------------------------------------------------------------------------

    def placed(self, model: M, where: str) -> M:
        """`model` as the strategy needs it: sharded over the ranks, or unchanged.

        Raises:
            UserError: the strategy is Lightning's own kind of FSDP2, or the model cannot be sharded.
        """
        if not self.sharded:
            return model
        strategy = self.trainer.strategy
        if not isinstance(strategy, FSDP2Strategy):
            raise UserError(
                f"{type(strategy).__name__} does not define how a model is sharded",
                where="trainer.strategy",
                expected="instructlit.modules.FSDP2Strategy",
                fix="use --config configs/strategy/fsdp2.yaml",
            )
        return shard(model, strategy.plan, where)

    def sharded_state(self) -> dict[str, Tensor]:
        """What is sharded besides weights and optimiser states, live: a sharded checkpoint holds it too."""
        return {}

    # -- Lightning hooks -------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The datamodule's tokenizer."""
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    def configure_callbacks(self) -> list[pl.Callback]:
        # The first hook that is called: Lightning refuses these options later, but cannot say what to set instead.
        check_trainer(self.trainer)
        held = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [kind() for kind in (Turns, Rescue, Lifeline) if kind not in held]

    def setup(self, stage: str) -> None:
        check_backbone(self)
        for logger in self.trainer.loggers:
            getattr(logger, "log_for", lambda _: None)(self.trainer.state.fn)
        if stage == TrainerFn.FITTING:
            for where, backbone in self.trained_backbones().items():
                check_trainable(backbone, where)
        check_datamodule(self)
        tokenizer, lengths = self.tokenizer, self.row_lengths()
        for where, backbone in self.backbones().items():
            check_positions(backbone, lengths, where)
        spare = {where: check_vocabulary(backbone, tokenizer, where) for where, backbone in self.backbones().items()}
        where, rows = next(iter(spare.items()))
        if rows >= UNUSUAL_ROWS:
            rank_zero_info(
                f"{where}: {rows} rows of the model's embedding have no token in the tokenizer. They use memory and "
                "can be sampled; such a token adds no text to a response."
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            made = self.make_optimizer(self.parameter_groups())  # type: ignore[arg-type]
        except ValueError as error:  # "Invalid learning rate: -1"
            raise UserError(str(error), where="model.init_args.optimizer") from error
        check_optimizer(made)
        optimizer = with_own_settings(over_shards(made))
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        if hasattr(scheduler, "set_total_steps"):
            scheduler.set_total_steps(self.total_updates())  # type: ignore[union-attr]
        check_schedule(scheduler, self.total_updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}  # type: ignore[return-value,typeddict-item]

    def on_train_start(self) -> None:
        check_savable(self)
        tell_unvalidated(self)
        tell_narrow_weights(self)
        if self._updates_done and (schedule := self.lr_schedulers()):
            advance(schedule, self._updates_done)  # type: ignore[arg-type]
        self._updates_done = 0
        if self._random_state is None:
            # Every rank begins with the seed, and would draw the same dropout for other rows.
            restore_random_state(own_share([random_state()], self.global_rank))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.check_training_batch(batch)
        self._take_up_random_state()
        self._steps_before = self.trainer.global_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        stepped = self.trainer.global_step > self._steps_before or self.guard.in_a_row
        if outputs and "loss" in outputs and not stepped:
            raise UserError(
                f"the training step of {type(self).__name__} returned a loss and took no step of the optimiser, so "
                "nothing is trained: a StageModule uses manual optimisation",
                where="model.class_path",
                expected="a training_step that calls `accumulate` and then `step_optimizer`",
                fix="see docs/plugging-in.md; a plain LightningModule may return its loss",
            )

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.batch_kind is not None:
            check_batch(batch, self.batch_kind, "a held-out batch")

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def check_training_batch(self, batch: Any) -> None:
        """Refuse what the stage could not train on.

        Raises:
            UserError: naming what was found and what should have come.
        """
        if self.batch_kind is not None:
            check_batch(batch, self.batch_kind, "a training batch")

    def _take_up_random_state(self) -> None:
        """Restore the checkpoint's, once all that draws random numbers before (checks, dataloaders) has done so."""
        if self._random_state is not None:
            restore_random_state(self._random_state)
            self._random_state = None

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **options: Any) -> None:
        """As Lightning's, but quicker from the second step on where no option is given, and with numbers in float32
        whatever the precision: in 16 bits 411 episodes would be 412.
        """
        figures = {
            name: torch.tensor(value, dtype=torch.float32, device=self.device) if isinstance(value, Number) else value
            for name, value in dictionary.items()
        }
        if args or options or not log_again(self, figures):
            super().log_dict(figures, *args, **options)

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:  # a run may resume with the validation that failed
            self._take_up_random_state()
        self._before_validation = random_state()  # looking at held-out data must not change what is trained on

    def on_validation_end(self) -> None:
        assert self._before_validation is not None
        restore_random_state(self._before_validation)
        self._before_validation = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in frozen_state_names(self):
            checkpoint["state_dict"].pop(name, None)  # the backbone's folder holds it
        if self.trainer.validating and self.trainer.interrupted:
            have_validated_again(checkpoint)
        checkpoint["instructlit"] = {
            "stage": self.stage,
            "backbone": asdict(self.backbone),
            "parents": self.parents(),
            "tokenizer": getattr(self.tokenizer, "name_or_path", None),
            "padding_token": getattr(self.tokenizer, "pad_token", None),
            "chat_template": getattr(self.tokenizer, "chat_template", None),
            "random_states": on_every_rank(self._before_validation or random_state()),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As for any module, but the frozen trunk under adapters, which a checkpoint leaves out, may be missing.

        Raises:
            RuntimeError: any other name is missing or unknown, and `strict` is set.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        odd = sorted({*result.missing_keys, *result.unexpected_keys} - frozen_state_names(self))
        if strict and odd:
            raise RuntimeError(f"{type(self).__name__} and the state differ in {len(odd)} entries, such as {odd[0]}")
        return result

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get("instructlit")
        if kept is None or kept["stage"] != self.stage:
            raise UserError(
                f"the checkpoint is of stage {kept['stage'] if kept else 'unknown'}, this run is {self.stage}",
                where="ckpt_path",
                expected=f"a checkpoint written by the {self.stage} stage",
            )
        if self.trainer.state.fn == TrainerFn.FITTING:  # evaluating a checkpoint restores nothing
            if "lr_schedulers" not in checkpoint:
                raise UserError(
                    "the checkpoint holds only the weights, as save_weights_only writes it",
                    where="ckpt_path",
                    expected="a checkpoint with the full state of the run",
                    fix="start from the model folder that `instructlit export CHECKPOINT FOLDER` writes from it",
                )
            done = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
            for logger in self.trainer.loggers:
                getattr(logger, "rewind", lambda _: None)(done)
            self._random_state = own_share(kept["random_states"], self.global_rank)
            # Lightning would restore the settings of the saved schedule; this run's is advanced instead.
            self._updates_done, checkpoint["lr_schedulers"] = checkpoint["global_step"], []
        self.guard.load_state_dict(kept["guard"])


def read_from(module: pl.LightningModule) -> list[str]:
    """The models and the tokenizer that a module's run begins from: folders or names on the Hub; a user's own
    module need not declare any.
    """
    tokenizer = getattr(getattr(module.trainer, "datamodule", None), "tokenizer", None)
    return [*getattr(module, "parents", dict)().values(), getattr(tokenizer, "name_or_path", "")]

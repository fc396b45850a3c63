"""What a stage cannot train with, whether from Lightning, torch or the user: one message each, before training."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from transformers import PreTrainedTokenizerBase

from instructlit.errors import Range, UserError, require

if TYPE_CHECKING:
    from instructlit.modules.base import StageModule

REFUSED_CALLBACKS: dict[type[pl.Callback], tuple[str, str]] = {
    StochasticWeightAveraging: (
        "copies a module before its model is loaded, and sets the learning rate itself",
        "PPO averages its policy by model.init_args.ema_decay",
    ),
    WeightAveraging: (
        "replaces weights by averages without telling the module, which exports and records them as raw",
        "PPO averages its policy by model.init_args.ema_decay",
    ),
    GradientAccumulationScheduler: (
        "has nothing to schedule: a batch is one optimiser step whatever its micro-batches",
        "data.init_args.batch_size sets how much a step learns from",
    ),
    LearningRateFinder: (
        "sets an attribute that the learning rate does not come from, and does not rewind the data after its trial",
        "set model.init_args.optimizer.init_args.lr",
    ),
    BatchSizeFinder: (
        "changes how much a step learns from",
        "`instructlit memory` tells what fits; model.init_args.micro_batch_size changes memory use only",
    ),
    BaseFinetuning: (
        "freezes layers of a module before its model is loaded",
        "to train few weights, use adapters (`lora` of a backbone)",
    ),
    ModelPruning: (
        "looks for weights before a module's model is loaded",
        "prune the model folder that the run exports",
    ),
}
"""Lightning's callbacks that are wrong or without effect with our modules: what each does, and what to do instead."""

REFUSED_OPTIMIZERS: dict[type[Optimizer], str] = {
    LBFGS: "computes the loss several times per step, but a step here has its gradient before it begins",
    SparseAdam: "takes only sparse gradients, but those of a language model are dense",
}
"""Optimisers of torch that would fail at their first step, and why."""


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse Trainer options whose work the modules do themselves, which would be ignored or done twice, and those
    with which nothing would be trained.

    Raises:
        UserError: for the first of them.
    """
    refused = [
        ("accumulate_grad_batches", trainer.accumulate_grad_batches not in (None, 1), "micro_batch_size"),
        ("gradient_clip_val", trainer.gradient_clip_val is not None, "gradient_clip_norm"),
        ("gradient_clip_algorithm", trainer.gradient_clip_algorithm is not None, "gradient_clip_norm"),
    ]
    for option, is_set, ours in refused:
        if is_set:
            raise UserError(
                "is not used here: a batch is one optimiser step whatever its micro-batches",
                where=f"trainer.{option}",
                fix=f"remove it and set model.init_args.{ours}",
            )
    check_numbers(trainer)
    for option in ("max_steps", "max_epochs", "limit_train_batches"):
        if trainer.state.fn == TrainerFn.FITTING and getattr(trainer, option) == 0:
            raise UserError(
                "is 0, so nothing would be trained",
                where=f"trainer.{option}",
                fix="remove it; `instructlit validate` evaluates a model without training it",
            )
    if str(trainer.precision).startswith("16"):
        raise UserError(
            f"{trainer.precision} overflows unless losses are scaled, which is not supported here",
            where="trainer.precision",
            expected="32-true, bf16-mixed or bf16-true",
            fix="set trainer.precision: bf16-mixed",
        )
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    if any(saver._train_time_interval is not None for saver in savers):
        raise UserError(
            "Lightning ignores this interval under manual optimisation, so nothing would be saved",
            where="ModelCheckpoint.train_time_interval",
            fix="remove it; instructlit.callbacks.ResumeCheckpoint saves at intervals of batches",
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, (what, fix) in REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise UserError(f"{type(callback).__name__} {what}", where="trainer.callbacks", fix=f"remove it; {fix}")


TRAINER_RANGES: dict[Range, tuple[str, ...]] = {
    "a whole number above 0": ("check_val_every_n_epoch",),
    "a number above 0": ("val_check_interval",),
    "a whole number, 0 or more": ("log_every_n_steps", "min_steps", "min_epochs", "num_sanity_val_steps"),
}
"""Numbers that Lightning does not check: it would divide by them, or ignore them."""


def check_numbers(trainer: pl.Trainer) -> None:
    """Refuse Trainer options with senseless values, whatever the module.

    Raises:
        UserError: for the first of them.
    """
    for expected, options in TRAINER_RANGES.items():
        values = {option: getattr(trainer, option, None) for option in options}  # absent where the interval is a time
        require(expected, "trainer.", **{name: x for name, x in values.items() if not isinstance(x, (str, dict))})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            raise UserError(
                f"is {left:g} seconds, so nothing would be trained",
                where="trainer.max_time",
                expected="a duration above 0",
            )


KEPT = (
    *("configure_callbacks", "setup", "on_fit_start", "on_train_start", "on_train_batch_start"),
    *("on_validation_start", "on_validation_end", "on_save_checkpoint", "on_load_checkpoint"),
)
"""Hooks that our modules need. Without one of them a run trains on what it should refuse, or resumes inexactly or
not at all, mostly without an error."""


def check_class(kind: type["StageModule"]) -> None:
    """Refuse a stage of the user's own that has no `trained_model`, or overrides a hook without calling the one that it
    overrides.

    Raises:
        UserError: for the first of them.
    """
    if getattr(kind.trained_model, "__isabstractmethod__", False):
        raise _incomplete(kind, "trained_model", "a property that returns the model in training")
    for owner in kind.__mro__:
        if owner.__module__.startswith("instructlit."):
            return
        for name in KEPT:
            hook = vars(owner).get(name)
            code = getattr(inspect.unwrap(hook), "__code__", None) if callable(hook) else None
            if code is not None and not {"super", name} & set(code.co_names):
                raise UserError(
                    f"{owner.__name__}.{name} does not call the `{name}` that it overrides",
                    where="model.class_path",
                    expected=f"a call of `super().{name}(…)`: a stage does part of its work there",
                )


def check_backbone(module: "StageModule") -> None:
    """Refuse a stage of the user's own that has not set its `backbone`.

    Raises:
        UserError: it has not.
    """
    if not hasattr(module, "backbone"):
        raise _incomplete(type(module), "backbone", "an attribute, set in __init__: the Backbone of the trained model")


def _incomplete(kind: type["StageModule"], name: str, expected: str) -> UserError:
    return UserError(
        f"{kind.__name__} does not define `{name}`",
        where="model.class_path",
        expected=expected,
        fix="docs/plugging-in.md lists what a StageModule needs",
    )


def check_datamodule(module: "StageModule") -> None:
    """Refuse a user's own datamodule that lacks something which the stage asks it for.

    Raises:
        UserError: there is none, or it lacks something.
    """
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        raise UserError(
            "none is given, and dataloaders alone do not provide the tokenizer",
            where="datamodule",
            expected=f"a datamodule with what {type(module).__name__} asks for: {', '.join(module.asks_data_for)}",
            fix="put the dataloaders into a LightningDataModule: docs/plugging-in.md has an example",
        )
    for name in module.asks_data_for:
        if not hasattr(data, name):
            raise UserError(
                f"{type(data).__name__} has no `{name}`",
                where="data.class_path",
                expected=f"what {type(module).__name__} asks its data for: {', '.join(module.asks_data_for)}",
                fix="add it: docs/plugging-in.md says what each is",
            )
    if not isinstance(data.tokenizer, PreTrainedTokenizerBase):
        raise UserError(
            f"`tokenizer` of {type(data).__name__} is {data.tokenizer!r}",
            where="data.class_path",
            expected="the tokenizer itself, not its folder or name",
            fix="load it in `setup`, as by instructlit.data.load_tokenizer, and keep the name under another attribute",
        )


def check_optimizer(made: Optimizer) -> None:
    """Refuse what is not one optimiser with learning rates, and torch's optimisers that would fail at their first step.

    Raises:
        UserError: it is one of them.
    """
    groups = made.param_groups if isinstance(made, Optimizer) else []
    if not groups or any("lr" not in group for group in groups):
        raise UserError(
            f"{type(made).__name__} has no learning rate" if groups else f"{made!r:.100} is not an optimiser",
            where="model.init_args.optimizer",
            expected="what makes one torch.optim.Optimizer, with `lr` in each of its parameter groups",
        )
    for kind, why in REFUSED_OPTIMIZERS.items():
        if isinstance(made, kind):
            raise UserError(
                f"{type(made).__name__} {why}",
                where="model.init_args.optimizer",
                fix="use torch.optim.AdamW or another",
            )


def check_schedule(scheduler: Any, total_updates: Callable[[], int | None]) -> None:
    """Refuse torch's schedules that cannot follow the updates of the run.

    Args:
        scheduler: what was made.
        total_updates: tells the optimiser steps of the run, as `StageModule.total_updates`.

    Raises:
        UserError: it follows a metric, or fails because the run is longer than the schedule.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        raise UserError(
            "ReduceLROnPlateau follows a metric, but a schedule here is stepped at every update",
            where="model.init_args.lr_scheduler",
            expected="a schedule that follows the number of updates",
            fix="use one of instructlit.models.schedules or another of torch.optim.lr_scheduler",
        )
    if isinstance(scheduler, OneCycleLR) and (updates := total_updates()) and scheduler.total_steps < updates:
        raise UserError(
            f"OneCycleLR ends after {scheduler.total_steps} steps, but the run has {updates}",
            where="model.init_args.lr_scheduler",
            expected=f"total_steps of at least {updates}",
            fix="raise it, or lower trainer.max_steps",
        )

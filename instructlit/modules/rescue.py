"""What a run that has to stop still does: all processes learn of it, and what was learnt is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from instructlit.errors import UserError, is_lightnings_refusal

T = TypeVar("T")

FILE = "failed.ckpt"
BETWEEN_STEPS = (UserError, OSError)
"""Errors that no optimiser raises, so the weights are consistent. Nor does one raise Lightning's refusals, such as of a
missing metric."""


def raise_together(trainer: pl.Trainer, fault: UserError | None) -> None:
    """Raise one process's fault in all of them, so that none waits for another in vain. Every rank must call it.

    Raises:
        UserError: `fault`, or that of another rank, which the message names.
    """
    if trainer.world_size > 1:
        failed = torch.zeros(trainer.world_size, device=trainer.strategy.root_device)
        failed[trainer.global_rank] = fault is not None
        distributed.all_reduce(failed)
        if failed.any():
            told: list[UserError | None] = [None] * trainer.world_size
            distributed.all_gather_object(told, fault)
            rank, first = next((rank, error) for rank, error in enumerate(told) if error is not None)
            if fault is None:
                fault = UserError(
                    f"in process {rank}: {first.what}", where=first.where, expected=first.expected, fix=first.fix
                )
                fault.told = True  # by that process
    if fault is not None:
        fault.on_all_ranks = True
        raise fault


def together(trainer: pl.Trainer, call: Callable[[], T]) -> T:
    """What `call` returns on this rank. Every rank must come here.

    Raises:
        UserError: on every rank, where `call` raises it on one of them.
    """
    try:
        found = call()
    except UserError as error:
        raise_together(trainer, error)
        raise
    raise_together(trainer, None)
    return found


def have_validated_again(checkpoint: dict[str, Any]) -> None:
    """Make a run that resumes from the checkpoint begin with the validation that failed, from its first batch.

    Lightning resumes a validation if it finds a batch of it begun but not done, and otherwise takes it as done.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress |= {"total": begun, "current": dict(begun)}


class Rescue(pl.Callback):
    """Saves a checkpoint when an error between two optimiser steps ends training, next to the run's own, and says so in
    the message.

    With several processes it is saved only where all of them stop at the same place. A run without checkpoints gets
    none.
    """

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        together = trainer.world_size == 1 or getattr(exception, "on_all_ranks", False)
        learnt = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and trainer.global_step > 0
        saved = getattr(exception, "saved", False)
        between = isinstance(exception, BETWEEN_STEPS) or is_lightnings_refusal(exception)
        if saved or not (between and folder and together and learnt):
            return
        path = Path(folder) / FILE
        try:
            trainer.save_checkpoint(path)
        except Exception as error:  # the first error is the one to tell
            exception.add_note(f"  not saved: {path} cannot be written ({error}); earlier checkpoints are unchanged")
        else:
            exception.add_note(
                f"  saved: all {trainer.global_step} optimiser steps are in {path}; --ckpt_path {path} resumes after "
                "this batch, `instructlit export` writes a model folder from it"
            )

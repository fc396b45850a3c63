"""When a `ModelCheckpoint` that counts optimiser steps saves: after the batch in which its number is reached."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class Turns(pl.Callback):
    """Saves with each `ModelCheckpoint` that has `every_n_train_steps` when it is due, in Lightning's place.

    Lightning checks at the end of a batch whether the steps are a multiple of the number. With batches of several
    steps, or a skipped step, it may miss every multiple. A checkpoint that it saves just before a validation counts
    that as done, so a run resumed from it leaves it out, and it is judged by the score of the validation before. Here
    the batch that reaches a multiple is followed by a save, after the validation if one is due.
    """

    def __init__(self) -> None:
        self._before = 0  # optimiser steps before the batch at hand
        self._savers: list[ModelCheckpoint] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        self._savers = [saver for saver in savers if saver._every_n_train_steps]
        for saver in self._savers:
            saver.on_train_batch_end = _nothing  # type: ignore[method-assign]
            saver._save_on_train_epoch_end = False  # what waits for a validation is saved when that ends

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._before = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if _validation_follows(trainer):
            return
        for saver in self._due(trainer):
            metrics = saver._monitor_candidates(trainer)
            if saver.monitor is not None and saver.monitor not in metrics:
                saver._defer_save_until_validation = True
            elif not saver._should_skip_saving_checkpoint(trainer):
                saver._save_topk_checkpoint(trainer, metrics)
                saver._save_last_checkpoint(trainer, metrics)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for saver in [] if trainer.sanity_checking else self._due(trainer):
            saver._defer_save_until_validation = True

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}  # for a run that resumes with a validation that failed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = int(state_dict["before"])

    def _due(self, trainer: pl.Trainer) -> list[ModelCheckpoint]:
        def turns(saver: ModelCheckpoint, steps: int) -> int:
            return steps // saver._every_n_train_steps

        return [saver for saver in self._savers if turns(saver, trainer.global_step) > turns(saver, self._before)]


def _nothing(*_: Any) -> None:
    pass


def _validation_follows(trainer: pl.Trainer) -> bool:
    """Whether a validation comes between the batch that ends and the next one."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return bool(sum(trainer.num_val_batches)) and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)

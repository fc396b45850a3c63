"""Records what a run is doing, in a file that outlives it, and the state it ends with."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

WIDTH = 16


class Phases(pl.Callback):
    """Writes the run's phase into a file at every change, and the whole state at the end into another.

    Of several processes the first one's phase counts.

    Args:
        path: the file of the phase.
        final: where the state at the end of training is saved.
    """

    def __init__(self, path: str, final: str):
        self.path, self.final = Path(path), Path(final)
        self._file: int | None = None
        self._phase = "start"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT)
        self._enter("start")
        for owner, method, phase in ((pl_module, "collect", "rollout"), (pl_module, "update", "update")):
            if hasattr(owner, method):
                setattr(owner, method, self._within(phase, getattr(owner, method)))
        trainer.save_checkpoint = self._within("save", trainer.save_checkpoint)  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: Any) -> None:
        self._enter("update")

    def on_train_batch_end(self, *_: Any) -> None:
        self._enter("between")

    def on_validation_start(self, *_: Any) -> None:
        self._enter("validation")

    def on_validation_end(self, *_: Any) -> None:
        self._enter("between")

    def on_train_end(self, *_: Any) -> None:
        self._enter("export")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        beside = self.final.with_suffix(".partial")
        trainer.save_checkpoint(beside, weights_only=False)
        if trainer.is_global_zero:
            if self.final.is_dir():  # left by a process killed right after this; a folder cannot replace another
                shutil.rmtree(self.final)
            beside.replace(self.final)

    def _within(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            outer = self._phase
            self._enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._enter(outer)

        return wrapped

    def _enter(self, phase: str) -> None:
        self._phase = phase
        if self._file is not None:
            os.pwrite(self._file, phase.ljust(WIDTH).encode(), 0)


def phase_in(path: Path) -> str:
    """The phase that was written last; empty before there is one."""
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""

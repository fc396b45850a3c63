"""A progress bar with the stage, its progress, the time left and the metrics to watch."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from instructlit.callbacks.common import progress_of, stage_name
from instructlit.errors import require

KEY_METRICS = (
    "train/loss",
    "val/loss",
    "val/accuracy",
    "objective/score",
    "objective/kl",
    "response/length",
    "val/score",
)
"""Shown where a stage logs them: the names without their first part."""

_SHORT = {"objective/": "", "response/": "", "train/": ""}


class StageProgress(ProgressBar):
    """One line: stage, bar, done of total, time left, up to three metrics. PPO counts episodes, the others steps.

    On a terminal the line is redrawn in place. Where the output goes to a file or a pipe a new line is written every
    `seconds`, so that a log stays readable.

    Args:
        seconds: time between two lines where the output is not a terminal.
        metrics: full names of the metrics to show; None picks up to three of the stage's own.
        refresh_rate: redraws per second on a terminal.
    """

    def __init__(self, seconds: float = 10.0, metrics: list[str] | None = None, refresh_rate: float = 5.0):
        super().__init__()
        require("a finite number, 0 or more", "StageProgress.", seconds=seconds)
        require("a finite number above 0", "StageProgress.", refresh_rate=refresh_rate)
        self.seconds, self.metrics, self.refresh_rate = seconds, metrics, refresh_rate
        self._enabled = True
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began, self._done_at_start, self._last_line = 0.0, 0, 0.0
        self._note = ""

    # -- what Lightning asks of a progress bar ---------------------------------------------------------------------

    def enable(self) -> None:
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether the bar shows; `LightningModule.print` asks before it prints around it."""
        return self._enabled

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._bar is not None and not kwargs:
            self._bar.console.print(*args, markup=False, highlight=False)
        else:
            print(*args, **kwargs)

    # -- hooks -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(stage_name(pl_module))
        self._done_at_start = progress_of(trainer, pl_module)[0]
        self._show(trainer, pl_module, force=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._show(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(trainer, pl_module, force=True)
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(stage_name(pl_module))
        # Here on every rank: the first time, Lightning counts the batches of the run in agreement with all of them, and
        # later it is rank 0 alone that shows, which would wait for the others for ever.
        progress_of(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._looking(
            trainer,
            pl_module,
            "sanity check" if trainer.sanity_checking else "validating",
            batch_idx,
            counts,
            dataloader_idx,
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note = ""
        if not trainer.sanity_checking and trainer.training:
            self._show(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._looking(trainer, pl_module, "testing", batch_idx, trainer.num_test_batches, dataloader_idx)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._looking(trainer, pl_module, "predicting", batch_idx, trainer.num_predict_batches, dataloader_idx)

    # -- the line --------------------------------------------------------------------------------------------------

    def _begin(self, stage: str) -> None:
        self._began = time.monotonic()
        if not self._enabled or self._bar is not None or not sys.stdout.isatty():
            return
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"),
            console=Console(file=sys.stdout),
            refresh_per_second=self.refresh_rate,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(stage, total=None, line="")
        self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _looking(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        what: str,
        batch_idx: int,
        counts: int | float | list[int | float],
        dataloader_idx: int,
    ) -> None:
        total = counts[dataloader_idx] if isinstance(counts, list) else counts
        self._note = f"{what} {batch_idx + 1} of {total}"
        self._show(trainer, module)

    def _show(self, trainer: pl.Trainer, module: pl.LightningModule, force: bool = False) -> None:
        if not self._enabled:
            return
        now = time.monotonic()
        if self._bar is None and not force and now - self._last_line < self.seconds:
            return
        self._last_line = now
        fitting = trainer.state.fn == "fit"
        done, total, unit = progress_of(trainer, module) if fitting else (0, None, "")
        parts = [f"{unit} {done:,} of {total:,}" if total else f"{unit} {done:,}"] if fitting else []
        if fitting and (left := self.time_left(done, total)):
            parts.append(left)
        parts += [self._note] if self._note else []
        parts += self._figures(trainer, module)
        line = "  ".join(parts)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, line=line)
        else:
            print(f"{stage_name(module)}  {line}", flush=True)

    def time_left(self, done: int, total: int | None) -> str:
        """`m:ss left`, from the pace since this process began; empty while there is no pace to go by."""
        fresh = done - self._done_at_start
        if total is None or fresh <= 0 or done >= total:
            return ""
        return f"{_clock((time.monotonic() - self._began) / fresh * (total - done))} left"

    def _figures(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[str]:
        known = trainer.callback_metrics
        prefix = stage_name(module) + "/"
        names = self.metrics if self.metrics is not None else [prefix + name for name in KEY_METRICS]
        shown = [name for name in names if name in known]
        return [f"{_short(name, prefix)} {float(known[name]):.3g}" for name in (shown if self.metrics else shown[:3])]


def _short(name: str, prefix: str) -> str:
    name = name.removeprefix(prefix)
    for long, short in _SHORT.items():
        name = short + name.removeprefix(long) if name.startswith(long) else name
    return name


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

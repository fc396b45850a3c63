"""What several callbacks ask of a module, a trainer or its loggers."""

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from instructlit.callbacks.save_config import SaveConfig
from instructlit.models.ranks import on_every_rank

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Run


def stage_name(module: pl.LightningModule) -> str:
    """What the stage's metrics begin with: `sft`, `pretrain`, `reward`, `ppo`, or what a user's own module says."""
    name = getattr(module, "metric_prefix", None) or getattr(module, "stage", None)
    return str(name or type(module).__name__.removesuffix("Module").lower())


def progress_of(trainer: pl.Trainer, module: pl.LightningModule) -> tuple[int, int | None, str]:
    """How much of the run is done, how much there is (None if unknown) and the unit."""
    if hasattr(module, "progress"):
        done, total, unit = cast(Any, module).progress()
        return int(done), None if total is None else int(total), str(unit)
    total = trainer.estimated_stepping_batches
    return trainer.global_step, int(total) if math.isfinite(total) else None, "step"


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Logged metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}


def wandb_runs(trainer: pl.Trainer) -> "list[Run]":
    """The W&B runs behind the trainer's loggers; empty on ranks other than 0 and where W&B is not in use."""
    return [logger.experiment for logger in wandb_loggers(trainer)]


def wandb_loggers(trainer: pl.Trainer) -> "list[WandbLogger]":
    """The trainer's W&B loggers; empty on ranks other than 0."""
    from lightning.pytorch.loggers import WandbLogger

    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)] if trainer.is_global_zero else []


def run_config(trainer: pl.Trainer) -> dict[str, Any]:
    """The config that `instructlit fit` was given, all files and options together and without secrets; else empty."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfig):
            return callback.resolved
    return {}


def run_seed(config: dict[str, Any]) -> int | None:
    """The seed that `seed_everything` was given, None where there was none."""
    told = os.environ.get("PL_GLOBAL_SEED", config.get("seed_everything"))
    return int(told) if told is not None and str(told).isdigit() else None


def rehearses(trainer: pl.Trainer) -> bool:
    """Whether the run is Lightning's `fast_dev_run`, of which nothing is kept."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def tell_without_validation(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Warn that a callback whose work is done at validations has none to do.

    For `on_train_start`: Lightning has read the data by then, except where the first epoch ends without a validation.
    """
    looks = trainer.fit_loop.epoch_loop._should_check_val_epoch()
    if not trainer.enable_validation or (looks and not sum(trainer.num_val_batches)):
        rank_zero_warn(
            f"{type(callback).__name__} works at validations, and this run has none: name files as "
            "data.init_args.validation or raise its validation_fraction, and leave trainer.limit_val_batches above 0",
            category=UserWarning,
        )


def logger_step(trainer: pl.Trainer) -> int:
    """The step that Lightning gives its loggers: batches trained on, which for PPO are rollouts."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def gathered(rows: list[Any]) -> list[Any]:
    """The rows of all ranks, in the order of ranks; every rank must call it."""
    return [row for part in on_every_rank(rows) for row in part]


def say(text: str) -> None:
    """A line for the user, apart from what the run prints; said once, by the first process."""
    if rank_zero_only.rank == 0:
        print(f"instructlit: {text}", file=sys.stderr, flush=True)


def put_file_aside(path: Path) -> None:
    """Keep what an earlier run has written to a file under another name beside it."""
    number = 1
    while (kept := path.with_name(f"{path.stem}-earlier-{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory held so far, in GiB: on a GPU what its allocator held, else this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)

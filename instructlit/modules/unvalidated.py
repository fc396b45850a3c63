"""Warns of a run that ends before its first validation when it begins; Lightning would say so when it has ended."""

import math
import warnings
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

from instructlit.errors import counted

if TYPE_CHECKING:
    from instructlit.modules.base import StageModule


def tell_unvalidated(module: "StageModule") -> None:
    """Warn where no validation comes before the end.

    For `on_train_start`: Lightning knows its data by then, except if it validates every few epochs: no warning then.
    """
    first, last = module.trainer.val_check_batch, _batches(module)
    if not sum(module.trainer.num_val_batches) or first is None or math.isinf(first) or first <= last:
        return
    rank_zero_warn(
        f"the run ends after {counted(int(last), 'batch', 'batches')} but its first validation would come after "
        f"{first:,}: a ModelCheckpoint that monitors a metric of validation saves nothing. "
        "Lower trainer.val_check_interval"
    )
    warnings.filterwarnings("ignore", r".*monitor='[^']*/val/[^']*'.*could not find the monitored key")


def _batches(module: "StageModule") -> float:
    """Training batches by the trainer's limits. A run that the module ends itself, as PPO does, is validated then."""
    trainer = module.trainer
    steps, epochs = (math.inf if limit in (None, -1) else limit for limit in (trainer.max_steps, trainer.max_epochs))
    last = min(steps / module.updates_per_batch, epochs * trainer.fit_loop.max_batches)
    return last if math.isinf(last) else math.ceil(last)

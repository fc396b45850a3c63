"""Logs a step's metrics without the work that Lightning repeats for each of them at every step.

Lightning's `log` checks a value, builds the description of its metric, compares it with that of the last step and walks
through everything that the metric holds to move it to the value's device: some 0.4 ms of a CPU for one number. Once
`log` has registered a metric, a later step only has to store the new number in it.
"""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor


def log_again(module: pl.LightningModule, figures: Mapping[str, Any]) -> bool:
    """Log figures that were logged in this hook before, with `log`'s defaults.

    Args:
        module: the one in training.
        figures: tensors () by name.

    Returns:
        False, with nothing logged, where one of them is new, was reset since (at the end of an epoch), is something
        else, or is not of the kind that a training step logs: one value at each step and none of the epoch.
    """
    results = getattr(module._trainer, "_results", None)
    if not results or module._fabric is not None or results.dataloader_idx is not None:
        return False
    places = [results.get(f"{module._current_fx_name}.{name}") for name in figures]
    if not all(_plain(place, value) for place, value in zip(places, figures.values(), strict=True)):
        return False
    for place, value in zip(places, figures.values(), strict=True):
        place.forward(value.detach().reshape(()), 1)
    return True


def _plain(place: Any, value: Any) -> bool:
    """Whether a metric of Lightning's takes `value` as it is."""
    if place is None or place.has_reset or not place.is_tensor:
        return False
    meta = place.meta
    number = isinstance(value, Tensor) and value.numel() == 1
    return number and meta.on_step and not meta.on_epoch and meta.logger and not (meta.prog_bar or meta.sync.should)

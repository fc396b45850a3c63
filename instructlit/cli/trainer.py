"""Errors from Lightning's Trainer, reported with the option that they are about."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint

from instructlit.errors import UserError
from instructlit.modules.refusals import check_numbers


def made(make: Callable[[], pl.Trainer], callbacks: list[Any], options: Mapping[str, Any]) -> pl.Trainer:
    """The Trainer that `make` returns.

    Args:
        make: constructs it, and does nothing else that can fail.
        callbacks: those it is given.
        options: its other options, including those that are not set.

    Raises:
        UserError: it refuses its options, or would fail with them.
    """
    saving = [type(callback).__name__ for callback in callbacks if isinstance(callback, Checkpoint)]
    if saving and options.get("enable_checkpointing") is False:  # Lightning would call all of them ModelCheckpoint
        raise UserError(
            f"is false, but {saving[0]} saves checkpoints",
            where="trainer.enable_checkpointing",
            fix=f"remove it, or the {saving[0]}",
        )
    try:
        trainer = make()
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        text = re.sub(r"<(\S+) object at \w+>", r"\1", str(error))
        named = [word for word in re.findall(r"\w+", text) if word in options]
        repeated = [name for name, value in options.items() if isinstance(value, str) and value and value in text]
        fix = "add --trainer.logger false" if options.get("barebones") and options.get("logger") else None
        raise UserError(text, where=".".join(["trainer", *(named or repeated)[:1]]), fix=fix) from error
    check_numbers(trainer)
    return trainer

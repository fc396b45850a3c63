"""State that checkpoints could not save or restore: refused when a run begins, not at its first save or on resume."""

import io
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from instructlit.errors import UserError, first_line, pickled_kind

if TYPE_CHECKING:
    from instructlit.modules.base import StageModule


def check_savable(module: "StageModule") -> None:
    """Refuse a part of a run whose state is not data.

    Raises:
        UserError: it cannot be written, or cannot be read as data, which is how checkpoints are read: never as code.
    """
    trainer = module.trainer
    if not trainer.checkpoint_callbacks:
        return
    schedule: Any = module.lr_schedulers()
    parts = [] if schedule is None else [("model.init_args.lr_scheduler", schedule)]
    parts += [("trainer.callbacks", callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    parts += module.stateful().items()
    for where, part in parts:
        _check(part.state_dict, part, where)
    if not type(module).on_save_checkpoint.__module__.startswith("instructlit."):
        _check(lambda: _added(module), module, "model.class_path")


def _check(state: Callable[[], Any], part: Any, where: str) -> None:
    file = io.BytesIO()
    try:
        torch.save(state(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # of many kinds: whatever pickle meets
        kind = pickled_kind(error)  # torch's own advice is to trust the file
        reason = f"it holds a {kind}" if kind else first_line(error)
        raise UserError(
            f"the state of {type(part).__name__} cannot be saved and read back: {reason}",
            where=where,
            expected="a state_dict of numbers, strings, tensors, and lists and dicts of them",
            fix="keep other objects out of it, or train without checkpoints: trainer.enable_checkpointing: false",
        ) from error


def _added(module: "StageModule") -> dict[str, Any]:
    """What a user's own module adds to a checkpoint; nothing if its hook needs more of a checkpoint than this."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    with suppress(Exception):
        module.on_save_checkpoint(checkpoint)
        return {name: value for name, value in checkpoint.items() if name != "state_dict"}
    return {}

"""What checkpoints could not hold or give back: said when a run begins, and not at its first checkpoint or when it is
to go on."""

import io
import re
from typing import TYPE_CHECKING, Any

import torch

from instructlit.errors import UserError, first_line

if TYPE_CHECKING:
    from instructlit.modules.base import StageModule


def check_savable(module: "StageModule") -> None:
    """Refuse a schedule, or a callback, whose state is not data.

    Raises:
        UserError: it cannot be written, or cannot be read as data, which is how checkpoints are read: never as code.
    """
    trainer = module.trainer
    if not trainer.checkpoint_callbacks:
        return
    schedule: Any = module.lr_schedulers()
    parts = [] if schedule is None else [("model.init_args.lr_scheduler", schedule)]
    parts += [("trainer.callbacks", callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    for where, part in parts:
        file = io.BytesIO()
        try:
            torch.save(part.state_dict(), file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:  # of many kinds: whatever pickle meets
            kind = re.search(r"GLOBAL (\S+)", str(error))  # of torch.load, whose advice is to trust the file
            reason = f"it holds a {kind[1]}" if kind else first_line(error)
            raise UserError(
                f"the state of {type(part).__name__} cannot be saved and read back: {reason}",
                where=where,
                expected="a state_dict of numbers, texts, tensors, and lists and dicts of them",
                fix="keep other objects out of it, or train without checkpoints: trainer.enable_checkpointing: false",
            ) from error

"""What a datamodule of the user's own hands to a stage, looked at once, where a batch comes in."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from instructlit.errors import UserError
from instructlit.types import Batch


def check_batch(batch: Any, kind: type[Batch], source: str) -> None:
    """Refuse what is no batch of `kind`, or has a mask that is not boolean or ids that are not whole numbers.

    Args:
        batch: what came.
        kind: what should have come.
        source: where it came from, in words.

    Raises:
        UserError: naming what was found.
    """
    if not isinstance(batch, kind):
        raise unfit(f"{source} is a {type(batch).__name__}", f"a {kind.__name__} of instructlit.types")
    for name in (field.name for field in fields(kind) if field.type in (Tensor, "Tensor")):
        value, dtype = getattr(batch, name), torch.bool if name.endswith("_mask") else torch.int64
        if not isinstance(value, Tensor) or value.dtype != dtype:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise unfit(f"`{name}` of {source} is {found}", f"a tensor of {dtype}")


def unfit(what: str, expected: str) -> UserError:
    """The message about a batch that a stage cannot take."""
    return UserError(
        what, where="data.class_path", expected=expected, fix="docs/plugging-in.md says what a stage asks its data for"
    )

"""Checks of the batches that a user's own datamodule hands to a stage."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from instructlit.errors import UserError
from instructlit.types import Batch, ComparisonBatch, PromptBatch, TokenBatch

OURS: tuple[type[Batch], ...] = (TokenBatch, ComparisonBatch, PromptBatch)
"""Batches whose fields are known here."""


def check_batch(batch: Any, kind: type[Batch], source: str) -> None:
    """Refuse what is not a batch of `kind`, or has a mask that is not boolean, ids that are not whole numbers, shapes
    that differ, or padding on the wrong side.

    Args:
        batch: what was received.
        kind: what was expected.
        source: where it came from, in words.

    Raises:
        UserError: naming what was found.
    """
    if not isinstance(batch, kind):
        raise unfit(f"{source} is a {type(batch).__name__}", f"a {kind.__name__} of instructlit.types")
    ours = next((one for one in OURS if issubclass(kind, one)), None)
    if ours is None:  # of a kind of the user's own nothing more is known
        return
    tensors = {field.name: getattr(batch, field.name) for field in fields(ours) if field.type in (Tensor, "Tensor")}
    for name, value in tensors.items():
        dtype = torch.bool if name.endswith("_mask") else torch.int64
        if not isinstance(value, Tensor) or value.dtype != dtype:
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise unfit(f"`{name}` of {source} is {found}", f"a tensor of {dtype}")
    _check_shapes(tensors, source)
    side = "left" if ours is PromptBatch else "right"
    if _is_padded_elsewhere(tensors["attention_mask"], side):
        raise unfit(f"{source} has a row with padding that is not on the {side}", f"padding on the {side} alone")


def _check_shapes(tensors: dict[str, Tensor], source: str) -> None:
    """Refuse shapes that differ: nothing further on would notice that a mask of T - 1 columns counts other tokens."""
    shape = tuple(tensors["input_ids"].shape)
    if len(shape) != 2:
        raise unfit(f"`input_ids` of {source} has the shape {shape}", "(sequences, positions)")
    for name, value in tensors.items():
        expected = shape if name == "input_ids" or name.endswith("_mask") else shape[:1]
        if tuple(value.shape) != expected:
            raise unfit(
                f"`{name}` of {source} has the shape {tuple(value.shape)}", f"{expected}, where `input_ids` has {shape}"
            )


def _is_padded_elsewhere(mask: Tensor, side: str) -> bool:
    """Whether a row of a mask (B, T) has padding that is not on `side`, from which columns are cut unseen."""
    earlier, later = mask[:, :-1], mask[:, 1:]
    return bool((later & ~earlier if side == "right" else earlier & ~later).any())


def unfit(what: str, expected: str) -> UserError:
    """The message about a batch that a stage cannot take."""
    return UserError(
        what, where="data.class_path", expected=expected, fix="docs/plugging-in.md says what a stage asks its data for"
    )

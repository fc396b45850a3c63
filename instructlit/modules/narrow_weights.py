"""Warns at the start of a run about weights trained in 16 bits: nothing else would show that it learns little."""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from instructlit.modules.base import StageModule


def tell_narrow_weights(module: "StageModule") -> None:
    """Warn where weights are held in 16 bits between updates.

    A weight in bfloat16 moves by a 256th of its size at least, or not at all. Adam's updates are about as large as the
    learning rate, at the usual ones of fine-tuning a thousandth of a weight, so that rounding takes most of them back.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    narrow = [p for p in trained if p.dtype in (torch.bfloat16, torch.float16)]
    if not narrow:
        return
    share = sum(p.numel() for p in narrow) / sum(p.numel() for p in trained)
    dtype = str(narrow[0].dtype).removeprefix("torch.")
    rank_zero_warn(
        f"{share:.0%} of the trained weights are held in {dtype}, in which updates much smaller than a weight are lost "
        "to rounding: at usual learning rates most weights do not change. Train with the model's `dtype: float32` and "
        "trainer.precision: bf16-mixed, or with `lora` on a trunk in 16 bits"
    )

"""The decoder blocks of a model, and their compilation.

Each block is compiled separately and in place: names of parameters stay the same, and one compilation serves all blocks
of a model, since they differ only in their weights. Lengths are symbolic from the start, so that a new one needs no
new compilation. What is around the blocks (embedding, last norm, head) is not compiled.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Cache

from instructlit.errors import UserError

VARIANTS = 64
"""Compilations of a block at most, beyond which torch runs it uncompiled. Each kind of mask, precision and set of
adapters has one, with a gradient and without, and PPO has four models; torch's own bound is 8."""


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of `model`, plain or with adapters, in order; none where transformers does not name them."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names]


def decoder_blocks(model: nn.Module, where: str, fix: str) -> list[nn.Module]:
    """`find_blocks`, if there must be some.

    Args:
        model: a transformers model.
        where: the option that needs them, for messages.
        fix: what to do where there are none, for messages.

    Raises:
        UserError: an architecture whose blocks transformers does not name.
    """
    blocks = find_blocks(model)
    if not blocks:
        raise UserError(
            f"{type(model).__name__} does not say which of its layers are blocks (_no_split_modules)",
            where=where,
            expected="a decoder architecture of transformers",
            fix=fix,
        )
    return blocks


def computes_again(model: nn.Module) -> bool:
    """Whether activations are computed again in the backward pass."""
    # by `vars`, for a module looks a name that it lacks up in all its dictionaries: every forward asks
    return any(
        vars(module).get("gradient_checkpointing") or type(module).__name__ == "CheckpointWrapper"
        for module in model.modules()
    )


def compile_blocks(model: nn.Module, where: str) -> None:
    """Compile every block of `model` when it is first called.

    Args:
        model: plain or with adapters.
        where: the option that names it, for messages.

    Raises:
        UserError: an architecture whose blocks transformers does not name.
    """
    blocks = decoder_blocks(model, f"{where}.compile", "remove `compile`")
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    config.optimize_ddp = False  # it cuts graphs where DDP reduces in between; our modules add gradients up afterwards
    for block in blocks:
        block._compiled_call_impl = _without_cache(block)  # as `block.compile` does


def _without_cache(block: nn.Module) -> Callable[..., Any]:
    """What is called in place of `block`: compiled, but for decoding, where a cache grows with every call."""
    plain, compiled = block._call_impl, torch.compile(block._call_impl, dynamic=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        cached = any(isinstance(x, Cache) for x in (*args, *kwargs.values()))
        return (plain if cached else compiled)(*args, **kwargs)

    return call

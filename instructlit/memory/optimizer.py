"""Bytes of an optimiser's state, before there are weights to optimise."""

from collections.abc import Callable, Iterable
from math import ceil
from typing import Any

import torch

from instructlit.models.sharded_optimizer import BLOCK


def state_bytes(make_optimizer: Callable[[Any], torch.optim.Optimizer], shapes: Iterable[torch.Size]) -> int:
    """What the optimiser holds after its first step for float32 parameters of these shapes.

    An optimiser of torch, or of the user's, takes a step on tensors without data and its state is added up. Those of
    bitsandbytes do not run without data; theirs follows from their options.

    Raises:
        RuntimeError: an optimiser that cannot step on tensors without data.
    """
    parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    if not parameters:
        return 0
    optimizer = make_optimizer([{"params": parameters}])
    if type(optimizer).__module__.startswith("bitsandbytes"):
        return sum(_blockwise(optimizer, p.numel()) for p in parameters)
    for p in parameters:
        p.grad = torch.empty_like(p)
    if is_fused(optimizer):  # the same state, and a kernel that wants data
        for group in optimizer.param_groups:
            group["fused"] = False
    try:
        optimizer.step()
    except Exception as error:
        raise RuntimeError(f"{type(optimizer).__name__}: {error}") from error
    tensors = (x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor))
    return sum(x.numel() * x.element_size() for x in tensors)


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether one kernel takes the step, without a temporary."""
    return bool(optimizer.defaults.get("fused"))


def is_paged(make_optimizer: Callable[[Any], torch.optim.Optimizer]) -> bool:
    """Whether the state lies in memory that moves to the host when the device is full."""
    optimizer: Any = make_optimizer([torch.nn.Parameter(torch.empty(1, device="meta"))])
    return bool(getattr(optimizer, "is_paged", False))


def _blockwise(optimizer: Any, count: int) -> int:
    """One or two moments of `count` values: a byte a value and a float32 a block, or float32 where the tensor is small.

    The two tables of 256 float32 that unpack them are held once for all parameters and not counted.
    """
    from bitsandbytes.optim.optimizer import Optimizer2State

    moments = 2 if isinstance(optimizer, Optimizer2State) else 1
    options: Any = optimizer.args
    if options.optim_bits == 32 or count < options.min_8bit_size:
        return moments * 4 * count
    return moments * (count + 4 * ceil(count / BLOCK))

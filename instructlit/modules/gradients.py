"""The gradient of a step whose backward passes are done: summed over the ranks, measured and clipped."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from instructlit.models.shards import whole


def sum_gradients(models: Iterable[nn.Module]) -> None:
    """Replace every gradient by its sum over all ranks; one that only some ranks have counts as 0 on the others."""
    parameters = [p for model in models for p in model.parameters() if p.requires_grad]
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    distributed.all_reduce(present, op=distributed.ReduceOp.MAX)
    works = []
    for parameter, somewhere in zip(parameters, present.tolist(), strict=True):
        if somewhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            works.append(distributed.all_reduce(parameter.grad, async_op=True))
    for work in works:
        work.wait()


def clip_gradient(root: nn.Module | None, model: nn.Module, bound: float | None) -> Tensor:
    """The norm () of `model`'s gradient before it is clipped to `bound`; None does not clip.

    Args:
        root: the strategy's wrapper of the module that `model` is part of.
        model: one of the models that are trained.
        bound: largest norm.
    """
    if isinstance(root, FullyShardedDataParallel):  # whose parameters are this rank's parts, and look like wholes
        return root.clip_grad_norm_(float("inf") if bound is None else bound)
    if bound is None:  # a factor of 1 would be written to every gradient
        return whole(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    return whole(nn.utils.clip_grad_norm_(model.parameters(), bound))

"""Tensors sharded over ranks (DTensor), as the rest of the code uses them: whole, or this rank's part."""

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all ranks, so that every rank must call this; one that is not sharded, unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_first_rank(tensor: Tensor) -> Tensor:
    """The tensor gathered to the first rank's host memory, without values on the others; one not sharded, unchanged.

    Every rank must call this. Only one tensor at a time is whole on every device.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    found = tensor.full_tensor()
    return found.cpu() if distributed.get_rank() == 0 else found.to("meta")


def local(tensor: Tensor) -> Tensor:
    """This rank's part, of which some ranks may have none; it shares the tensor's memory. If not sharded, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(part: Tensor, like: Tensor, columns: torch.Size) -> Tensor:
    """This rank's rows (n, *columns) as one tensor that is cut between rows where `like` is; `part` where it is not.

    No rank is asked: every rank knows from `like` how many rows there are.
    """
    if not isinstance(like, DTensor):
        return part
    shape = torch.Size([like.shape[0], *columns])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)

"""bitsandbytes' optimisers on parameters that are cut over ranks: the same gradients whatever the number of ranks."""

import os
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from instructlit.errors import UserError
from instructlit.models.sharded_optimizer import over_shards
from instructlit.models.shards import local, whole

OPTIM: Any = bitsandbytes.optim
WHOLE_BLOCKS = {"square": (64, 256), "odd_rows": (3, 2048), "one_row": (1, 4096), "even_rows": (64, 128)}
"""Cut over one or two ranks, every part holds whole blocks of 256."""
SPLIT_BLOCKS = {"ragged": (96, 100), "vector": (5001,)}
SMALL = {"small": (64, 8)}  # in 32 bits
SHAPES: dict[str, tuple[int, ...]] = {**WHOLE_BLOCKS, **SPLIT_BLOCKS, **SMALL}
KINDS: dict[str, Any] = {
    "AdamW8bit": lambda p: OPTIM.AdamW8bit(p, lr=1e-2, weight_decay=0.1),
    "PagedAdamW8bit": lambda p: OPTIM.PagedAdamW8bit(p, lr=1e-2),
    "Lion8bit": lambda p: OPTIM.Lion8bit(p, lr=1e-3),
    "AdamW": lambda p: OPTIM.AdamW(p, lr=1e-2),
    "torch": lambda p: torch.optim.AdamW(p, lr=1e-2),
}
FIRST, MORE = 5, 3


class Weights(nn.Module):
    """One parameter of each shape."""

    def __init__(self) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=stream)))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    """Optimiser steps on gradients that depend on nothing but parameter and step."""
    for step in range(first, first + count):
        for number, parameter in enumerate(model.parameters()):
            stream = torch.Generator().manual_seed(1000 * number + step)
            gradient = torch.randn(parameter.shape, generator=stream)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All of each parameter."""
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The state dict by parameter name, gathered."""
    found = optimizer.state_dict()["state"]
    names = [name for name, _ in model.named_parameters()]
    return {
        names[number]: {
            key: whole(value).clone() if isinstance(value, Tensor) else value for key, value in part.items()
        }
        for number, part in found.items()
    }


def part_bytes(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes this rank holds for the state of each parameter, the shared maps of codes left out."""
    return {
        name: sum(local(v).nbytes for k, v in state.items() if isinstance(v, Tensor) and "qmap" not in k and v.dim())
        for name, state in zip(SHAPES, optimizer.state.values(), strict=True)
    }


def cut(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model over all ranks, with its optimiser."""
    model = Weights()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, over_shards(KINDS[kind](model.parameters()))


def restored(kind: str, folder: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    """As `cut`, from a checkpoint."""
    model, optimizer = cut(kind)
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    load(state, checkpoint_id=folder)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    load(state, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"])
    return model, optimizer


def refuses_dtensors() -> bool:
    """Whether bitsandbytes by itself still fails on parameters that are cut."""
    model, _ = cut("torch")
    try:
        steps(model, KINDS["AdamW8bit"](model.parameters()), 0, 1)
    except Exception:
        return True
    return False


def refusal(kind: Any) -> str:
    """What is said of an optimiser that cannot be cut."""
    model, _ = cut("torch")
    try:
        over_shards(kind(model.parameters(), lr=1e-3))
    except UserError as error:
        return str(error)
    return ""


def work(rank: int, world: int, folder: Path) -> None:
    """Everything on one rank of `world`; the first writes `folder/world.pt`. Checkpoints of the other number are read
    where they are.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
    found: dict[str, Any] = {"refuses": refuses_dtensors()}
    found |= {kind.__name__: refusal(kind) for kind in (OPTIM.LAMB8bit, OPTIM.AdEMAMix8bit)}
    for kind in KINDS:
        model, optimizer = cut(kind)
        steps(model, optimizer, 0, FIRST)
        after = {"first": weights(model), "state": states(model, optimizer), "bytes": part_bytes(optimizer)}
        whole_state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        save(whole_state, checkpoint_id=folder / f"{kind}-{world}")
        steps(model, optimizer, FIRST, MORE)
        after["straight"] = weights(model)
        for other in (1, 2):
            if (folder / f"{kind}-{other}" / ".metadata").is_file():
                model, optimizer = restored(kind, folder / f"{kind}-{other}")
                after[f"state_from_{other}"] = states(model, optimizer)
                steps(model, optimizer, FIRST, MORE)
                after[f"from_{other}"] = weights(model)
        found[kind] = after
    if rank == 0:
        torch.save(found, folder / f"{world}.pt")
    dist.destroy_process_group()

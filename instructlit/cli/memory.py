"""When a device runs out of memory: what took it, and which settings save the most."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from instructlit.errors import UserError, first_line
from instructlit.memory import best, estimate, run_of
from instructlit.memory.shapes import Shapes
from instructlit.memory.table import as_text, lines


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on a GPU or on a CPU, whose allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def out_of_memory(error: BaseException, module: Any, data: Any, trainer: pl.Trainer) -> UserError:
    """The message where memory ran out: the estimate of the run, and the two settings that help most."""
    what = " ".join(str(error).split())[:200] or "out of memory"
    try:
        run = run_of(
            module,
            data,
            precision=str(trainer.precision),
            devices=trainer.world_size,
            strategy=strategy_of(trainer),
        )
        shapes = Shapes()
        found = estimate(run, shapes)
        changes = lines(best(run, 2, shapes))
    except Exception as unknown:  # nothing may hide that memory ran out
        fix = f"process less at once ({first_line(unknown)})"
        return UserError(f"the device's memory is full: {what}", fix=fix)
    fix = (
        "these settings save the most memory, each by itself:\n" + "\n".join(changes)
        if changes
        else "no setting saves memory here"
    )
    return UserError(
        f"the device's memory is full: {what}\n\n{as_text(found)}\n",
        expected="a run that fits; `instructlit memory --config … --fit 24GiB` says which would",
        fix=fix,
    )


def strategy_of(trainer: pl.Trainer) -> Any:
    """How the trainer's devices share the work."""
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
        return "sharded"
    return "ddp" if isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1 else "single"

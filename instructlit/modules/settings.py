"""A checkpoint holds the state of optimiser and schedule; the config holds their settings.

A run that is resumed unchanged sees no difference: both agree.
"""

import inspect
import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from instructlit.errors import UserError, first_line


def with_own_settings(optimizer: Optimizer) -> Optimizer:
    """`optimizer` itself, changed to load only state: learning rates, betas and other settings stay as configured."""
    load = optimizer.load_state_dict
    arguments = {name for kind in type(optimizer).__mro__ for name in inspect.signature(kind.__init__).parameters}
    # Some optimisers count steps, or estimate a step size, in the groups too.
    state = {"params"} | {name for group in optimizer.param_groups for name in group if name not in arguments}

    def load_state_dict(state_dict: dict[str, Any], **options: Any) -> None:
        # The settings go in before it loads, not after: where torch keeps a step count depends on one of them, `fused`.
        groups = [
            own | {name: value for name, value in saved.items() if name in state}
            for own, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True)
        ]
        load(state_dict | {"param_groups": groups}, **options)

    optimizer.load_state_dict = load_state_dict  # type: ignore[method-assign]
    return optimizer


def step(schedule: LRScheduler) -> None:
    """One step of a schedule, at the same place on all ranks.

    Raises:
        UserError: it fails, as torch's do with a period of 0, or beyond the end that they were given.
    """
    try:
        schedule.step()
    except UserError:
        raise
    except Exception as error:
        fault = UserError(
            f"{type(schedule).__name__} failed at step {schedule.last_epoch}: {type(error).__name__}: "
            f"{first_line(error)}",
            where="model.init_args.lr_scheduler",
            expected="a schedule that has a learning rate for every update of the run",
        )
        fault.on_all_ranks = True
        raise fault from error


def advance(schedule: LRScheduler, updates: int) -> None:
    """Advance a fresh `schedule` to its state after `updates` updates: it depends on nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
        for _ in range(updates):
            step(schedule)

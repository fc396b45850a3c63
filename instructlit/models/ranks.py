"""What the processes of a run do together; all of them must call these."""

from collections.abc import Callable
from typing import Any

from torch import distributed

from instructlit.errors import UserError


def on_every_rank(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    if not _several():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def on_first_rank_alone(write: Callable[[], None]) -> None:
    """Have the first rank write while the others wait; its error is raised in all of them."""
    if not _several():
        write()
        return
    fault = None
    if distributed.get_rank() == 0:
        try:
            write()
        except UserError as error:
            fault = error
    told = [fault]
    distributed.broadcast_object_list(told, src=0)
    if told[0] is not None:
        told[0].told = distributed.get_rank() != 0  # the first says it
        raise told[0]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()

"""The bytes of all tensors alive at once, on any device: what a GPU's allocator would count."""

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Adds up each storage when an operation first reads or makes it, and takes it off when it is freed.

    `peak` is the most at once, since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tensors(args):
            self.see(x)
        out = func(*args, **(kwargs or {}))
        for x in tensors((out,)):
            self.see(x)
        return out

    def see(self, x: Tensor) -> None:
        """Count the storage of `x`; where oneDNN keeps it to itself, what the tensor has room for."""
        held = x if x.is_mkldnn else x.untyped_storage()
        at = id(x) if x.is_mkldnn else x.untyped_storage()._cdata
        if at in self._alive or held.device.type == "meta":
            return
        self._alive[at] = held.nbytes if isinstance(held, Tensor) else held.nbytes()
        self.now += self._alive[at]
        self.peak = max(self.peak, self.now)
        weakref.finalize(held, self._freed, at)

    def _freed(self, at: int) -> None:
        self.now -= self._alive.pop(at, 0)


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list | dict):
            yield from tensors(value)

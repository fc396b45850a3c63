"""Work on a GPU that is recorded once and then repeated without the host: CUDA graphs."""

from collections.abc import Callable

import torch

_recorded: dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]] = {}
"""The stream that records on a device, and the last record, which keeps the memory that the next one takes over."""


class Replayed:
    """A function of tensors that stay where they are, which it changes in place.

    A step of a small model is some hundred kernels of a few microseconds each, less than Python takes to start them.
    The first call runs as it is, so that what is made at first use (compiled kernels, workspaces) is there; the second
    is recorded; from then on the record is replayed. On a CPU every call runs as it is.

    Args:
        function: reads and writes the same memory at every call, and never waits for the device.
        device: where that memory is.
    """

    def __init__(self, function: Callable[[], None], device: torch.device):
        self._function, self._device = function, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False

    def __call__(self) -> None:
        if self._device.type != "cuda" or not self._warm:
            self._function()
            self._warm = True
            return
        if self._graph is None:
            self._graph = _record(self._function, self._device)
        self._graph.replay()


def _record(function: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph of what `function` does.

    `torch.cuda.graph` would first give the device back all memory that torch holds in reserve, and training would ask
    for it again, once a rollout.
    """
    graph, pool = torch.cuda.CUDAGraph(), None
    if device in _recorded:
        stream, last = _recorded[device]
        pool = last.pool()  # nobody replays that one any more
    else:
        stream = torch.cuda.Stream(device)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        # Other threads, such as one that pins batches, may use the device meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            function()
        finally:
            graph.capture_end()
    _recorded[device] = stream, graph
    return graph

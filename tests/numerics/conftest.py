"""Ranks without processes, threads that meet at an all-reduce; and rows packed as on a GPU."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from instructlit.models import packed

Reduce = Callable[[Tensor], Tensor]


class _AllReduce:
    """A sum over `n` threads; a rank that calls it more often than the others breaks the barrier."""

    def __init__(self, n: int):
        self.barrier = threading.Barrier(n, timeout=10)
        self.parts: list[Tensor | None] = [None] * n

    def of_rank(self, rank: int) -> Reduce:
        def reduce(sums: Tensor) -> Tensor:
            self.parts[rank] = sums
            self.barrier.wait()
            total = torch.stack([part for part in self.parts if part is not None]).sum(dim=0)
            self.barrier.wait()
            return total

        return reduce


@pytest.fixture
def on_ranks() -> Callable[[Callable[[Any, Reduce], Any], Sequence[Any]], list[Any]]:
    """`on_ranks(function, parts)` calls `function(part, reduce)` for each part in a thread and lists the answers."""

    def run(function: Callable[[Any, Reduce], Any], parts: Sequence[Any]) -> list[Any]:
        all_reduce = _AllReduce(len(parts))
        answers: list[Any] = [None] * len(parts)
        errors: list[BaseException] = []

        def work(rank: int) -> None:
            try:
                answers[rank] = function(parts[rank], all_reduce.of_rank(rank))
            except BaseException as error:
                errors.append(error)
                all_reduce.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return answers

    return run


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are attended to by the operator of a GPU, in any precision; `varlen_on_cpu` gives it kernels."""
    monkeypatch.setattr(packed, "at_once", lambda device: True)
    monkeypatch.setattr(packed, "_has_flash", lambda device: True)
    monkeypatch.setattr(packed, "_HALVES", (torch.bfloat16, torch.float16, torch.float32))

"""Which rows make which batch, and a loader that can be stopped after any batch and continued.

A plan is a pure function from the number of a batch, counted from the start of training, to the rows of that batch. The
loader holds nothing but that number, so its state is exact, no matter what the workers have read ahead. A batch is one
optimiser step's worth; each rank takes every world-size-th row of it, so every rank sees the same number of batches.
"""

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, Sampler

from instructlit.errors import UserError, counted

_BUCKET_BATCHES = 50


class Plan(Protocol):
    """Rows of every batch of a training run."""

    def __len__(self) -> int:
        """Batches in one epoch."""
        ...

    def batch(self, number: int) -> np.ndarray:
        """Rows (1-d int64) of batch `number`, counted from 0 over all epochs."""
        ...


class ShuffledPlan:
    """Every row once per epoch in an order that is a function of (seed, epoch); rows that do not fill a batch wait for
    a later epoch.

    Args:
        groups: rows that share a weight, 1-d int64.
        batch_size: rows of a batch, over all ranks.
        seed: determines the order, together with the epoch.
        weights: how often each group's rows occur in an epoch; fractions on average over the epochs, however few rows
            share a weight.
        shuffle: False keeps the rows as they come, in every epoch.
        lengths: tokens of each row, indexed by row; if given, rows of similar length share a batch (less padding).
    """

    def __init__(
        self,
        groups: Sequence[np.ndarray],
        batch_size: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        shuffle: bool = True,
        lengths: np.ndarray | None = None,
    ):
        self.groups, self.batch_size, self.seed, self.shuffle, self.lengths = groups, batch_size, seed, shuffle, lengths
        sizes = np.array([len(group) for group in groups])
        times, fractions = np.divmod(np.array(weights or [1.0] * len(groups)), 1)
        self._times = times.astype(np.int64).tolist()
        self._last = np.cumsum([0, *sizes])
        self._line = np.cumsum([0, *sizes * fractions]).round(6)  # ten times 0.1 is one row
        rows = int(sizes @ times) + int(self._line[-1])
        self._batches = rows // batch_size
        if not self._batches:
            raise UserError(
                f"{counted(rows, 'row')}: fewer than one batch of {batch_size}",
                where="batch_size",
                expected="at least one whole batch",
                fix="lower batch_size or add data",
            )
        self._order = lru_cache(maxsize=2)(self._make_order)

    def __len__(self) -> int:
        return self._batches

    def batch(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, self._batches)
        return self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def _make_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        mixed = [rng.permutation(group) if self.shuffle else group for group in self.groups]
        whole = [group for group, times in zip(self.groups, self._times, strict=True) for _ in range(times)]
        rows = np.concatenate([*whole, self._drawn(np.concatenate(mixed), rng)])
        if not self.shuffle:
            return rows
        rows = rng.permutation(rows)[: self._batches * self.batch_size]
        return rows if self.lengths is None else self._bucketed(rows, rng)

    def _drawn(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The rows that the fractions of the weights add to an epoch, by systematic sampling.

        The rows are laid on a line, group after group, each as long as its fraction, and the row at every whole number
        is drawn. The line's start is random, so each row's chance is its fraction, and an epoch has at most one row
        more than the whole part of the fractions' sum, which `_batches` relies on.
        """
        if not self._line[-1]:
            return rows[:0]
        ends = np.interp(np.arange(len(rows) + 1), self._last, self._line)
        return rows[np.diff(np.floor(ends + (rng.random() if self.shuffle else 0.0))) > 0]

    def _bucketed(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sorts by length within runs of many batches, then shuffles the batches."""
        assert self.lengths is not None
        stretch = self.batch_size * _BUCKET_BATCHES
        pieces = [rows[i : i + stretch] for i in range(0, len(rows), stretch)]
        rows = np.concatenate([piece[np.argsort(self.lengths[piece], kind="stable")] for piece in pieces])
        return rng.permutation(rows.reshape(self._batches, self.batch_size), axis=0).reshape(-1)


class MixedPlan:
    """Batches of one plan followed by the same-numbered batches of another; the first defines the length of an epoch.

    Args:
        first: the plan that defines the epoch.
        second: keeps its own epochs: it continues where it was when the first starts a new epoch.
        offset: added to the second's rows, which follow the first's in one dataset.
    """

    def __init__(self, first: Plan, second: Plan, offset: int):
        self.first, self.second, self.offset = first, second, offset

    def __len__(self) -> int:
        return len(self.first)

    def batch(self, number: int) -> np.ndarray:
        return np.concatenate([self.first.batch(number), self.second.batch(number) + self.offset])


class RepeatedPlan:
    """The first batches of a plan, repeated.

    Args:
        plan: the plan.
        count: number of batches.
    """

    def __init__(self, plan: Plan, count: int):
        self.plan, self.count = plan, count

    def __len__(self) -> int:
        return len(self.plan)

    def batch(self, number: int) -> np.ndarray:
        """Rows of batch `number`, counted from 0 over all epochs."""
        return self.plan.batch(number % self.count)


class EvenPlan:
    """For evaluation: every row once, in order, in batches of nearly equal size, so that no rank waits for another.

    Every rank has a row in every batch. If that takes fewer batches than `batch_size` asks for, a batch is larger,
    by at most one row per rank. With fewer rows than ranks, each rank sees all of them, so that all count equally.

    Args:
        rows: the rows, 1-d int64.
        batch_size: maximum rows of a batch, over all ranks.
        world_size: ranks that share each batch.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, world_size: int = 1):
        self._rows = rows if len(rows) >= world_size else np.repeat(rows, world_size)
        self._batches = min(-(-len(self._rows) // batch_size), len(self._rows) // world_size)
        # Split so that shares of consecutive rows differ by at most one row; a batch is `world_size` shares.
        self._edges = np.linspace(0, len(self._rows), self._batches + 1).astype(np.int64)

    def __len__(self) -> int:
        return self._batches

    def batch(self, number: int) -> np.ndarray:
        return self._rows[self._edges[number] : self._edges[number + 1]]


def repeated(groups: Sequence[np.ndarray], weights: Sequence[float], at_least: int) -> list[float]:
    """The groups' weights, multiplied so that an epoch has a batch of `at_least` rows: a shorter text is seen several
    times in it.
    """
    rows = sum(len(group) * weight for group, weight in zip(groups, weights, strict=True))
    times = max(1, math.ceil(at_least / rows))
    return [weight * times for weight in weights]


class PlannedLoader:
    """Batches of a plan for one rank, from the first in every pass: for evaluation.

    Lightning does not replace its sampler, as it is not a torch `DataLoader` but makes one in each pass.

    Args:
        rows: `rows[i]` is one encoded row.
        plan: which rows make each batch.
        collate: list of encoded rows to a batch.
        rank: rank of this process.
        world_size: processes that share each batch.
        num_workers: worker processes that read ahead; 0 reads in this process.
        pin_memory: hand batches over in page-locked memory, from which a GPU copies asynchronously.
    """

    def __init__(
        self,
        rows: Any,
        plan: Plan,
        collate: Callable[[list[Any]], Any],
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.rows, self.plan, self.collate = rows, plan, collate
        self.rank, self.world_size = rank, world_size
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        return self._read(range(len(self.plan)))

    def _read(self, numbers: range) -> Iterator[Any]:
        # Its own generator: without one, a torch loader draws from the global random state at every start.
        loader = DataLoader(
            _Fetched(self.rows),
            batch_sampler=_Shares(self.plan, numbers, self.rank, self.world_size),
            collate_fn=partial(_collated, self.collate),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=_outlive_sigterm,
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class ResumableDataLoader(PlannedLoader):
    """Batches of a training run for one rank, with a position that Lightning saves and restores.

    A pass gives the batches of one epoch and the next pass continues with the following ones, so that the k-th training
    batch is the plan's k-th, however long an epoch is. A pass that was cut short is finished by the next iterator.

    Args:
        rows: `rows[i]` is one encoded row.
        plan: which rows make each batch.
        collate: list of encoded rows to a batch.
        rank: rank of this process.
        world_size: processes that share each batch.
        num_workers: worker processes that read ahead; 0 reads in this process.
        pin_memory: hand batches over in page-locked memory, from which a GPU copies asynchronously.
        length: batches per epoch as reported to Lightning; the plan's own if not given.
        limit: Lightning's `limit_train_batches`, so that a pass ends where its epoch does.
        fingerprint: what the order depends on; a checkpoint with another fingerprint is rejected.
        again: every pass gives the batches of the first, as Lightning's `overfit_batches` asks for.
    """

    def __init__(
        self,
        rows: Any,
        plan: Plan,
        collate: Callable[[list[Any]], Any],
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        length: int | None = None,
        limit: int | float = 1.0,
        fingerprint: dict[str, int | str] | None = None,
        again: bool = False,
    ):
        super().__init__(rows, plan, collate, rank, world_size, num_workers, pin_memory)
        self._length = length or len(plan)
        self._pass_length = min(self._length, limit) if isinstance(limit, int) else max(1, int(self._length * limit))
        if again:
            self.plan = RepeatedPlan(plan, self._pass_length)
        self._fingerprint = fingerprint or {}
        self.accepts_changes = False
        self._number = 0  # batches handed out since the start of training
        self._pass_start = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        if self._number >= self._pass_start + self._pass_length:
            self._pass_start = self._number
        for batch in self._read(range(self._number, self._pass_start + self._pass_length)):
            self._number += 1  # before yielding: a checkpoint made while the batch is in use counts it as seen
            yield batch

    def in_use(self) -> np.ndarray:
        """Rows (1-d int64) of the last batch, over all ranks."""
        return self.plan.batch(max(self._number - 1, 0))

    def state_dict(self) -> dict[str, Any]:
        """The position: batches handed out, and where this pass began."""
        return {"batch": self._number, "pass_start": self._pass_start, "fingerprint": dict(self._fingerprint)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the batches that `state` has seen.

        Raises:
            UserError: if the data, or an option that sets its order, has changed and `accepts_changes` is not set.
        """
        then = state["fingerprint"]
        changed = [f"{k} was {then.get(k)}, is {now}" for k, now in self._fingerprint.items() if then.get(k) != now]
        if changed and not self.accepts_changes:
            raise UserError(
                "the data differs from what the run began with: " + "; ".join(changed),
                where="--resume",
                expected="the same data in the same order, so that the run continues as if it had not stopped",
                fix="restore it; `--resume anyway` continues with the data as it is now, `--resume never` starts again",
            )
        for line in changed:
            rank_zero_warn(f"the run does not continue exactly as before: {line}")
        self._number, self._pass_start = state["batch"], state["pass_start"]


class _Fetched(Dataset):
    """The rows of a batch, or the `UserError` that reading one of them raised.

    A worker process passes on an exception as the text of its stack trace; passed on as a value it keeps its message.
    """

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> list[Any] | UserError:
        try:
            return [self._rows[i] for i in indices]
        except UserError as error:
            return error


def _outlive_sigterm(_: int) -> None:
    """Ignores SIGTERM in a worker: the trainer may have a batch to finish when its process group is terminated. The
    worker ends with the trainer."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _collated(collate: Callable[[list[Any]], Any], rows: list[Any] | UserError) -> Any:
    return rows if isinstance(rows, UserError) else collate(rows)


class _Shares(Sampler[list[int]]):
    """One rank's rows of some batches, computed when the loader reaches them."""

    def __init__(self, plan: Plan, numbers: range, rank: int, world_size: int):
        self._plan, self._numbers, self._rank, self._world_size = plan, numbers, rank, world_size

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[list[int]]:
        for number in self._numbers:
            yield self._plan.batch(number)[self._rank :: self._world_size].tolist()

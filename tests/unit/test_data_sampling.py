"""Plans of batches, and the loader that can be stopped and continued: by hand, and by Lightning."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from instructlit.data.sampling import EvenPlan, MixedPlan, PlannedLoader, ResumableDataLoader, ShuffledPlan, repeated
from instructlit.errors import UserError


def rows(n: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + n)


def epoch_of(plan: Any, epoch: int) -> list[int]:
    return [row for i in range(len(plan)) for row in plan.batch(epoch * len(plan) + i).tolist()]


class Numbers:
    """A dataset whose row is its index."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        return index


def loader(plan: Any, **options: Any) -> ResumableDataLoader:
    return ResumableDataLoader(Numbers(), plan, torch.tensor, **options)


def test_an_epoch_is_every_row_once_in_an_order_of_its_own() -> None:
    plan = ShuffledPlan([rows(12)], 3, seed=5)
    first, second = epoch_of(plan, 0), epoch_of(plan, 1)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first == epoch_of(ShuffledPlan([rows(12)], 3, seed=5), 0)
    assert first != epoch_of(ShuffledPlan([rows(12)], 3, seed=6), 0)


def test_batches_to_overfit_are_those_of_the_first_pass_in_every_pass() -> None:
    again = loader(ShuffledPlan([rows(12)], 3, shuffle=False), limit=2, again=True)
    assert [[batch.tolist() for batch in again] for _ in range(3)] == 3 * [[[0, 1, 2], [3, 4, 5]]]
    assert again.in_use().tolist() == [3, 4, 5]


def test_what_is_in_use_is_what_was_handed_out_last() -> None:
    batches = loader(ShuffledPlan([rows(12)], 3, shuffle=False))
    assert [(batch.tolist(), batches.in_use().tolist()) for batch in batches] == [
        (one, one) for one in rows(12).reshape(4, 3).tolist()
    ]


def test_left_over_rows_come_in_other_epochs() -> None:
    plan = ShuffledPlan([rows(7)], 3)
    assert len(plan) == 2
    assert set().union(*(epoch_of(plan, e) for e in range(10))) == set(range(7))


def test_weights_are_how_often_a_row_comes() -> None:
    plan = ShuffledPlan([rows(4), rows(8, 4)], 2, weights=[2.0, 0.5])
    seen = Counter(epoch_of(plan, 0))
    assert len(plan) == 6
    assert all(seen[row] == 2 for row in range(4))
    assert sum(seen[row] for row in range(4, 12)) == 4
    assert max(seen[row] for row in range(4, 12)) == 1
    assert epoch_of(plan, 1) != epoch_of(plan, 0)
    halves = {frozenset(row for row in epoch_of(plan, epoch) if row >= 4) for epoch in range(20)}
    assert len(halves) > 2, "which rows come together changes"


def test_rows_of_a_weight_of_their_own_come_as_often_as_it_says() -> None:
    """Rounded group by group, a lone row of 0.3 would never come and one of 1.6 twice an epoch."""
    weights = np.linspace(0.2, 1.9, 18)
    plan = ShuffledPlan([*rows(18).reshape(-1, 1), rows(8, 18)], 1, weights=[*weights, 0.05])
    epochs = [Counter(epoch_of(plan, epoch)) for epoch in range(1000)]
    assert {epoch.total() for epoch in epochs} == {int(weights.sum() + 0.4)}
    times = np.array([sum(epoch[row] for epoch in epochs) for row in range(26)]) / 1000
    assert times == pytest.approx(np.array([*weights, *[0.05] * 8]), abs=0.06)


def test_unshuffled_keeps_the_order() -> None:
    assert epoch_of(ShuffledPlan([rows(4), rows(2, 10)], 2, shuffle=False), 3) == [0, 1, 2, 3, 10, 11]


def test_less_than_a_batch_is_an_error() -> None:
    with pytest.raises(UserError, match=r"3 rows: fewer than one batch of 4"):
        ShuffledPlan([rows(3)], 4)


@pytest.mark.parametrize(("weights", "times"), [([1.0, 1.0], 2), ([0.5, 0.25], 5), ([3.0, 1.0], 1)])
def test_weights_of_a_text_shorter_than_a_batch_are_how_often_its_rows_come(weights: list[float], times: int) -> None:
    groups = [rows(4), rows(4, 4)]
    plan = ShuffledPlan(groups, 15, weights=repeated(groups, weights, 15))
    assert len(plan) == 1
    seen = Counter(row for epoch in range(400) for row in epoch_of(plan, epoch))
    share = 15 / (4 * sum(weights) * times)  # what does not fill a batch waits for another epoch
    for row, count in seen.items():
        assert count / 400 == pytest.approx(times * weights[row // 4] * share, rel=0.15)


def test_bucketing_puts_like_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=400)
    plan = ShuffledPlan([rows(400)], 4, lengths=lengths)
    assert sorted(epoch_of(plan, 0)) == list(range(400))
    spread = [np.ptp(lengths[plan.batch(i)]) for i in range(len(plan))]
    mixed = ShuffledPlan([rows(400)], 4)
    assert np.mean(spread) < 0.1 * np.mean([np.ptp(lengths[mixed.batch(i)]) for i in range(len(mixed))])
    order = [lengths[plan.batch(i)].mean() for i in range(len(plan))]
    assert np.mean(np.diff(order) > 0) == pytest.approx(0.5, abs=0.15), "the batches come in an order of length"


def test_the_second_plan_of_a_mix_goes_on_over_epochs_of_the_first() -> None:
    plan = MixedPlan(ShuffledPlan([rows(4)], 2), ShuffledPlan([rows(10)], 2, seed=1), offset=100)
    assert len(plan) == 2
    second = [row for i in range(5) for row in plan.batch(i)[2:].tolist()]
    assert sorted(second) == list(range(100, 110))


@pytest.mark.parametrize(
    ("n", "batch", "world", "batches"),
    [
        (10, 4, 1, 3),
        (10, 4, 2, 3),
        (9, 8, 4, 2),
        (16, 4, 4, 4),
        (5, 100, 2, 1),
        (3, 2, 2, 1),
        (5, 2, 2, 2),
        (7, 4, 4, 1),
    ],
)
def test_evaluation_sees_every_row_once_and_no_rank_waits(n: int, batch: int, world: int, batches: int) -> None:
    plan = EvenPlan(rows(n), batch, world)
    parts = [[plan.batch(i)[rank::world] for i in range(len(plan))] for rank in range(world)]
    assert len(plan) == batches
    assert sorted(row for part in parts for share in part for row in share) == list(range(n))
    sizes = [len(share) for part in parts for share in part]
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch // world, 1) + (batches < n / batch)


@pytest.mark.parametrize(("n", "batch", "world"), [(1, 4, 2), (3, 100, 4), (3, 4, 4), (3, 2, 5)])
def test_fewer_rows_than_ranks_count_alike_in_evaluation(n: int, batch: int, world: int) -> None:
    plan = EvenPlan(rows(n), batch, world)
    shares = [plan.batch(i)[rank::world].tolist() for i in range(len(plan)) for rank in range(world)]
    assert all(shares)
    assert Counter(row for share in shares for row in share) == dict.fromkeys(range(n), world)


def test_ranks_share_each_batch_of_one_process() -> None:
    plan = ShuffledPlan([rows(24)], 6)
    whole = [batch.tolist() for batch in loader(plan)]
    parts = [[batch.tolist() for batch in loader(plan, rank=r, world_size=2)] for r in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3, 4, 6, 9])
def test_state_is_what_was_handed_out_not_what_was_read_ahead(workers: int, taken: int) -> None:
    plan = ShuffledPlan([rows(12)], 3, seed=2)
    straight = loader(plan)
    expected = [batch.tolist() for _ in range(3) for batch in straight]
    first = loader(plan, num_workers=workers)
    seen: list[list[int]] = []
    while len(seen) < taken:
        for batch in first:
            seen.append(batch.tolist())
            if len(seen) == taken:
                break
    second = loader(plan, num_workers=workers)
    second.load_state_dict(first.state_dict())
    while len(seen) < len(expected):
        seen += [batch.tolist() for batch in second]
    assert seen[: len(expected)] == expected


class Told(Numbers):
    """Whoever reads a row is told to end, as all processes of a group are when the trainer is."""

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return index


def test_a_reading_process_outlives_sigterm_since_the_trainer_has_a_batch_to_finish() -> None:
    plan = ShuffledPlan([rows(4)], 2, shuffle=False)
    assert [b.tolist() for b in PlannedLoader(Told(), plan, torch.tensor, num_workers=1)] == [[0, 1], [2, 3]]


def test_after_resuming_the_pass_is_finished_not_begun_again() -> None:
    plan = ShuffledPlan([rows(12)], 3)
    first, second = loader(plan), loader(plan)
    next(iter(first))
    second.load_state_dict(first.state_dict())
    assert [len(list(second)), len(list(second))] == [3, 4]


def test_an_iterator_that_nothing_was_taken_from_costs_nothing() -> None:
    plan = ShuffledPlan([rows(12)], 3)
    a, b = loader(plan), loader(plan)
    for _ in range(2):
        iter(a)
    assert [batch.tolist() for batch in a] == [batch.tolist() for batch in b]


def test_reading_leaves_the_global_random_state_alone() -> None:
    """A torch DataLoader without a generator draws a seed when it starts: a resumed run, which starts once more, would
    sample other responses from there on."""
    before = torch.get_rng_state()
    list(loader(ShuffledPlan([rows(12)], 3)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_checkpoint_of_other_data_is_refused() -> None:
    plan = ShuffledPlan([rows(12)], 3)
    old, new = loader(plan, fingerprint={"rows": 12}), loader(plan, fingerprint={"rows": 13})
    with pytest.raises(UserError, match="rows was 12, is 13"):
        new.load_state_dict(old.state_dict())
    new.accepts_changes = True
    with pytest.warns(UserWarning, match="does not continue exactly as before: rows was 12, is 13"):
        new.load_state_dict(old.state_dict())


def test_evaluation_starts_at_the_first_batch_every_time() -> None:
    evaluation = PlannedLoader(Numbers(), EvenPlan(rows(6), 2), torch.tensor)
    next(iter(evaluation))
    assert [batch.tolist() for batch in evaluation] == [[0, 1], [2, 3], [4, 5]]


# Lightning: what a run sees straight through, and what it sees when it is stopped and started in another trainer.


class Recorder(pl.LightningModule):
    """Notes every batch; its one weight makes it a module that can be checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.automatic_optimization = False
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.seen.append({k: v.tolist() for k, v in batch.items()} if isinstance(batch, dict) else batch.tolist())
        optimizer.zero_grad()
        (self.weight * 0).sum().backward()
        optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TwoStreams(pl.LightningDataModule):
    """Four batches of prompts an epoch beside a stream of text that has nine, as `PromptData` sets them up."""

    def __init__(self, workers: int, both: bool, limit: int | float = 1.0, keep: bool = True) -> None:
        super().__init__()
        self.workers, self.both, self.limit, self.keep = workers, both, limit, keep
        self.positions: dict[str, Any] = {}

    def train_dataloader(self) -> Any:
        options: dict[str, Any] = {"num_workers": self.workers, "limit": self.limit}
        prompts = loader(ShuffledPlan([rows(12)], 3), **options)
        text = loader(ShuffledPlan([rows(18, 100)], 2, seed=1), length=len(prompts), **options)
        self.loaders = {"prompts": prompts, "text": text} if self.both else {"prompts": prompts}
        for name, state in self.positions.items():
            self.loaders[name].load_state_dict(state)
        return self.loaders if self.both else prompts

    def val_dataloader(self) -> Any:
        return PlannedLoader(Numbers(), EvenPlan(rows(4), 2), torch.tensor)

    def state_dict(self) -> dict[str, Any]:
        return {name: one.state_dict() for name, one in self.loaders.items()} if self.keep else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.positions = state_dict


class StopAfter(Callback):
    """Saves and stops after so many batches, as a kill at the next moment would leave it."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if len(module.seen) == self.batches:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step  # stop now, not at the end of the epoch


class SaveAtEpochEnd(Callback):
    """Saves when an epoch has ended: Lightning itself does not restore its loaders from such a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def fit(
    data: pl.LightningDataModule, callbacks: list[Callback], resume: Path | None = None, **options: Any
) -> list[Any]:
    module = Recorder()
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pl.Trainer(**quiet, callbacks=callbacks, **options).fit(module, data, ckpt_path=resume, weights_only=True)
    return module.seen


LENGTHS = [{"max_steps": 10}, {"max_epochs": 3}]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", LENGTHS, ids=["max_steps", "max_epochs"])
@pytest.mark.parametrize("both", [False, True], ids=["one", "two"])
@pytest.mark.parametrize(("workers", "stop"), [(0, 3), (0, 4), (0, 6), (2, 3)])
def test_stopped_and_resumed_sees_the_same_batches(
    tmp_path: Path, length: dict[str, Any], both: bool, workers: int, stop: int
) -> None:
    """3 + resume + the rest: in the middle of the first epoch, at its last batch, in the second; with and without
    workers."""
    straight = fit(TwoStreams(0, both), [], **length)
    checkpoint = tmp_path / "last.ckpt"
    before = fit(TwoStreams(workers, both), [StopAfter(stop, checkpoint)], **length)
    after = fit(TwoStreams(workers, both), [], resume=checkpoint, **length)
    assert before + after == straight


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("both", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("limit", [1.0, 3, 0.75], ids=["whole", "three", "three quarters"])
def test_resumed_from_the_end_of_an_epoch(tmp_path: Path, both: bool, limit: int | float) -> None:
    checkpoint = tmp_path / "epoch.ckpt"
    options: dict[str, Any] = {"max_epochs": 3, "limit_train_batches": limit}
    straight = fit(TwoStreams(0, both, limit), [SaveAtEpochEnd(checkpoint)], **options)
    per_epoch = 4 if limit == 1 else 3
    assert len(straight) == 3 * per_epoch
    after = fit(TwoStreams(0, both, limit), [], resume=checkpoint, **options)
    assert after == straight[per_epoch:]


@pytest.mark.filterwarnings("ignore")
def test_text_goes_on_over_epochs_of_prompts() -> None:
    seen = fit(TwoStreams(0, True), [], max_epochs=3)
    assert len(seen) == 12
    text = [row for batch in seen[:9] for row in batch["text"]]
    assert sorted(text) == list(range(100, 118))
    prompts = [[row for batch in seen[i : i + 4] for row in batch["prompts"]] for i in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(12)) for epoch in prompts)
    assert prompts[0] != prompts[1]


@pytest.mark.filterwarnings("ignore")
def test_lightning_alone_restores_a_loader_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """For a user's own datamodule that has the loader but keeps no positions itself."""
    checkpoint = tmp_path / "last.ckpt"
    straight = fit(TwoStreams(0, True), [], max_steps=10)
    before = fit(TwoStreams(0, True, keep=False), [StopAfter(6, checkpoint)], max_steps=10)
    after = fit(TwoStreams(0, True, keep=False), [], resume=checkpoint, max_steps=10)
    assert before + after == straight

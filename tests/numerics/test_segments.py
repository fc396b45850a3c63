"""Attention by segments, one by one and several at once, against a softmax over the whole row."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from instructlit.models import segments
from instructlit.models.segments import ALONE, batched, by_segments

TREE = [[2, ALONE], [2, 0], [0, 0], [2, ALONE]]
ROWS = [[5, ALONE], [9, ALONE], [0, ALONE], [8, ALONE], [9, ALONE], [1, ALONE], [4, ALONE]]


def over_the_whole_row(query: Tensor, key: Tensor, value: Tensor, rows: list[list[int]]) -> Tensor:
    """The same by one mask: token i sees token j up to itself, of its segment or of that one's parent."""
    owner = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([n for n, _ in rows]))
    parent = torch.tensor([p for _, p in rows])[owner]
    sees = (owner[:, None] == owner) | (parent[:, None] == owner)
    sees &= torch.ones_like(sees).tril()
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~sees, -torch.inf).softmax(dim=-1) @ value


@pytest.mark.parametrize("plain", [0, 1 << 18])
def test_by_hand(plain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are 0, so that a token's output is the mean of the values it sees."""
    monkeypatch.setattr(segments, "PLAIN_SCORES", plain)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]).expand(2, 6)[None, :, :, None]
    zeros = torch.zeros(1, 2, 6, 1)
    # two tokens; two that continue them; an empty one; two of their own
    found = by_segments(zeros, zeros, values, TREE, 0.0, 1.0)
    expected = torch.tensor([1.0, 3 / 2, 7 / 3, 15 / 4, 16.0, 48 / 2]).expand(2, 6)[None, :, :, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rows", [TREE, ROWS], ids=["tree", "rows"])
@pytest.mark.parametrize("longest", [0, 256], ids=["one by one", "at once"])
@pytest.mark.parametrize("plain", [0, 1 << 18])
def test_numbers_and_gradients(
    rows: list[list[int]], longest: int, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "LONGEST_IN_BATCH", {8: longest})
    monkeypatch.setattr(segments, "PLAIN_SCORES", plain)
    monkeypatch.setattr(segments, "_LIKE", 0.5)  # 9, 9, 8, 5 and 4, 1: two batches and one alone
    segments._laid.cache_clear()
    chance = torch.Generator().manual_seed(0)
    width = sum(n for n, _ in rows)
    # heads of values may have another size than those of queries and keys
    inputs = [torch.randn(1, width, 3, size, generator=chance, dtype=torch.float64) for size in (4, 4, 5)]
    weight = torch.randn(1, 3, width, 5, generator=chance, dtype=torch.float64)
    results = []
    attends: Any = (
        partial(by_segments, segments=rows, dropout=0.0, scaling=None),
        partial(over_the_whole_row, rows=rows),
    )
    for attend in attends:
        own = [x.clone().requires_grad_() for x in inputs]
        found = attend(*(x.transpose(1, 2) for x in own))
        results.append([found, *torch.autograd.grad((found * weight).sum(), own)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rows", [TREE, ROWS], ids=["tree", "rows"])
def test_scaling_and_dropout_reach_every_segment(rows: list[list[int]]) -> None:
    width = sum(n for n, _ in rows)
    query, key, value = torch.randn(3, 1, 2, width, 4, dtype=torch.float64)
    scaled = by_segments(query, key, value, rows, 0.0, 0.3)
    torch.testing.assert_close(scaled, over_the_whole_row(0.3 * 2 * query, key, value, rows))  # 1 / 2 by default
    kept = by_segments(query, key, torch.ones_like(value), rows, 0.5, None)
    first = [sum(n for n, _ in rows[:i]) for i, (n, parent) in enumerate(rows) if n and parent == ALONE]
    assert set(kept[:, :, first].unique().tolist()) == {0.0, 2.0}, "a first token sees itself, dropped or twice"


def test_several_at_once_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three lengths of a batch differ by a quarter at most, and long ones stand alone."""
    taken: list[int] = []
    attended = segments._attended

    def counted(query: Tensor, *args: Any) -> Tensor:
        taken.append(len(query))
        return attended(query, *args)

    monkeypatch.setattr(segments, "_attended", counted)
    for lengths, dtype, products in (
        ([40, 36, 31], torch.float32, [6]),
        ([60, 58, 57], torch.float32, [2, 2, 2]),
        ([60, 58, 57], torch.bfloat16, [6]),
        ([40, 20, 10], torch.float32, [2, 2, 2]),
    ):
        taken.clear()
        q = torch.randn(1, 2, sum(lengths), 4).to(dtype)
        by_segments(q, q, q, [[n, ALONE] for n in lengths], 0.0, None)
        assert taken == products


def test_batches_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (8, 3, 12, 0, 9, 4, 100)
    assert batched(lengths, 2, 50) == ((6,), (2, 4), (0,), (5, 1))
    assert batched(lengths, 2, 0) == ((6,), (2,), (4,), (0,), (5,), (1,))
    monkeypatch.setattr(segments, "BATCH_SCORES", 2 * 2 * 12 * 12 - 1)
    assert batched(lengths, 2, 50) == ((6,), (2,), (4, 0), (5, 1))

"""The reward model's loss against hand-made numbers, Bradley-Terry, and a loop over pairs."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from instructlit.losses import (
    comparison_pairs,
    pair_accuracy,
    pair_calibration_sums,
    pair_margins,
    ranking_loss,
)
from instructlit.ops import calibration_error

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4
RAGGED_PROMPTS = tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
RAGGED_RANKS = tensor([2, 1, 3, 1, 2, 1, 1, 1, 1, 1, 2])  # prompt 2 is all ties, prompt 0 has one


def by_loop(scores: Tensor, prompts: Tensor, ranks: Tensor) -> tuple[float, int]:
    """Pair by pair in Python, from the sentence that defines the loss."""
    total, with_pairs = 0.0, 0
    for prompt in sorted(set(prompts.tolist())):
        rows = [i for i, p in enumerate(prompts.tolist()) if p == prompt]
        losses = []
        for i, j in combinations(rows, 2):
            if ranks[i] == ranks[j]:
                continue
            winner, loser = (i, j) if ranks[i] < ranks[j] else (j, i)
            losses.append(math.log1p(math.exp(-(scores[winner] - scores[loser]).item())))
        if losses:
            total, with_pairs = total + sum(losses) / len(losses), with_pairs + 1
    return total, with_pairs


def test_pairs_by_hand() -> None:
    pairs = comparison_pairs(tensor([0, 0, 0, 1, 1]), tensor([1, 2, 2, 2, 1]))
    assert [x.tolist() for x in pairs] == [[0, 0, 4], [1, 2, 3], [0, 0, 1]]


def test_two_completions_are_bradley_terry() -> None:
    scores, prompts, ranks = tensor([LN3, 0.0]), tensor([0, 0]), tensor([1, 2])
    assert_close(ranking_loss(scores, prompts, ranks).mean(), tensor(math.log(4 / 3)))
    assert_close(ranking_loss(scores, prompts, ranks.flip(0)).mean(), tensor(math.log(4)))
    # and for many prompts it is the mean negative log-likelihood
    scores = torch.randn(20)
    loss = ranking_loss(scores, torch.arange(10).repeat_interleave(2), tensor([1, 2] * 10))
    likelihood = scores[0::2].exp() / (scores[0::2].exp() + scores[1::2].exp())
    assert_close(loss.mean(), -likelihood.log().mean())


def test_a_prompt_is_the_mean_of_its_pairs_and_a_batch_the_mean_of_its_prompts() -> None:
    # prompt 0: margins ln 3, ln 3, 0; prompt 1: margin 0
    scores = tensor([LN3, 0.0, 0.0, 5.0, 5.0])
    loss = ranking_loss(scores, tensor([0, 0, 0, 1, 1]), tensor([1, 2, 3, 2, 1]))
    first, second = (2 * math.log(4 / 3) + math.log(2)) / 3, math.log(2)
    assert_close(loss.total, tensor(first + second))
    assert loss.count == 2


def test_ragged_batch_with_ties_against_a_loop() -> None:
    scores = torch.randn(11)
    loss = ranking_loss(scores, RAGGED_PROMPTS, RAGGED_RANKS)
    total, count = by_loop(scores, RAGGED_PROMPTS, RAGGED_RANKS)
    assert_close(loss.total.item(), total, rtol=1e-6, atol=1e-6)
    assert loss.count == count == 3


def test_only_ties_give_zero_and_a_gradient_of_zero() -> None:
    scores = torch.randn(3, requires_grad=True)
    loss = ranking_loss(scores, tensor([0, 0, 0]), tensor([2, 2, 2]))
    assert loss == (0, 0)
    loss.mean().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scores_a_hundred_apart_stay_finite(dtype: torch.dtype) -> None:
    for ranks, expected, gradient in (([2, 1], 100.0, 1.0), ([1, 2], 0.0, 0.0)):
        scores = tensor([50.0, -50.0], dtype=dtype, requires_grad=True)
        loss = ranking_loss(scores, tensor([0, 0]), tensor(ranks))
        loss.mean().backward()
        assert loss.total.dtype == torch.float32
        assert_close(loss.total.item(), expected)
        assert scores.grad is not None
        assert_close(scores.grad.tolist(), [gradient, -gradient])


@pytest.mark.parametrize("cut", [4, 6, 9])
def test_micro_batches_of_prompts_change_no_gradient(cut: int) -> None:
    features, head = torch.randn(11, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64, requires_grad=True)
    whole = ranking_loss(features @ head, RAGGED_PROMPTS, RAGGED_RANKS)
    (expected,) = torch.autograd.grad(whole.mean(), head)
    parts = []
    for rows in (slice(0, cut), slice(cut, None)):
        prompts = RAGGED_PROMPTS[rows] - RAGGED_PROMPTS[rows][0]
        parts.append(ranking_loss(features[rows] @ head, prompts, RAGGED_RANKS[rows]))
    (got,) = torch.autograd.grad(parts[0].mean(whole.count) + parts[1].mean(whole.count), head)
    assert_close(got, expected)


def test_accuracy_and_calibration_of_margins_by_hand() -> None:
    scores = tensor([LN3, 0.0, LN3, 2 * LN3])
    margins = pair_margins(scores, comparison_pairs(tensor([0, 0, 0, 0]), tensor([1, 2, 2, 3])))
    # (0, 1), (0, 2), (0, 3), (1, 3), (2, 3): right, equal, wrong, wrong, wrong
    assert_close(margins, tensor([1.0, 0, -1, -2, -1]) * LN3)
    assert pair_accuracy(margins) == (1.5, 5)
    # favourites at 1/2 (half right), 3/4 (one of three right) and 9/10 (wrong)
    sums = pair_calibration_sums(margins, bins=3)
    assert_close(sums, tensor([[1.0, 3, 1], [0.5, 2.25, 0.9], [0.5, 1, 0]]))
    assert_close(calibration_error(sums), tensor((0 + 1.25 + 0.9) / 5))


def test_a_reward_model_that_knows_the_odds_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    margins = torch.randn(20_000, generator=generator) * 2
    right = torch.rand(20_000, generator=generator) < torch.sigmoid(margins)
    labelled = torch.where(right, margins, -margins)  # seen from the labeler's winner
    assert calibration_error(pair_calibration_sums(labelled)) < 0.02
    assert calibration_error(pair_calibration_sums(3 * labelled)) > 0.1  # over-confident


def test_one_score_a_completion() -> None:
    with pytest.raises(ValueError, match="one per completion"):
        ranking_loss(torch.zeros(3, 1), tensor([0, 0, 0]), tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="one per completion"):
        comparison_pairs(tensor([0, 0]), tensor([1, 2, 3]))

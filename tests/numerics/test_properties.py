"""What holds for any input: drawn by hypothesis, from a seed, a shape and a scale."""

import math
from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from instructlit.intervals import wilson_interval
from instructlit.losses import language_loss, pair_accuracy, policy_loss, ranking_loss, value_loss
from instructlit.ops import (
    AdaptiveKL,
    RunningMoments,
    calibration_error,
    calibration_sums,
    gae,
    k2,
    k3,
    last_index,
    masked_mean,
    masked_moments,
    shape_rewards,
    token_log_probs,
    token_log_probs_and_entropy,
    whiten,
)


class Batch(NamedTuple):
    """(B, T) float64 tensors and a mask that is one run from the left in each row."""

    x: Tensor
    y: Tensor
    z: Tensor
    mask: Tensor


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    lengths = torch.tensor(draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    x, y, z = (torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale for _ in range(3))
    return Batch(x, y, z, torch.arange(width) < lengths[:, None])


@st.composite
def logits_and_ids(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.1, 3.0, 100.0]))
    return logits, torch.randint(shape[2], shape[:2], generator=generator)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, prompt index and ranks of up to 4 prompts with 2 to 5 completions, ties included."""
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    ranks = draw(st.lists(st.integers(1, 4), min_size=sum(sizes), max_size=sum(sizes)))
    scores = draw(st.lists(st.floats(-20, 20, width=32), min_size=sum(sizes), max_size=sum(sizes)))
    prompts = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.tensor(scores, dtype=torch.float64), prompts, torch.tensor(ranks)


@given(batches(), st.floats(-1e3, 1e3), st.floats(0.1, 10))
def test_whitening_forgets_place_and_size(batch: Batch, shift: float, scale: float) -> None:
    variance = masked_moments(batch.x, batch.mask)[2].item()
    white = whiten(batch.x, batch.mask, epsilon=1e-12 * variance)
    if batch.mask.sum() > 1:
        assert abs(masked_mean(white, batch.mask).item()) < 1e-9
        assert math.isclose(masked_moments(white, batch.mask)[2].item(), 1, rel_tol=1e-9)
        moved = whiten(batch.x * scale + shift, batch.mask, epsilon=1e-12 * variance * scale**2)
        assert_close(moved, white, rtol=1e-5, atol=1e-5)
    assert (white[~batch.mask] == 0).all()


@given(batches(), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_linear_and_its_returns_end_with_the_reward(batch: Batch, gamma: float, lam: float) -> None:
    x, y, z, mask = batch
    zero = torch.zeros_like(x)
    together, returns = gae(x + y, z, mask, gamma, lam)
    assert_close(together, gae(x, zero, mask, gamma, lam)[0] + gae(y, z, mask, gamma, lam)[0])
    rows = mask.any(dim=1)
    at_last = last_index(mask)[:, None]
    assert_close(returns.gather(1, at_last)[rows], (x + y).gather(1, at_last)[rows])


@given(batches(), st.floats(0, 2))
def test_shaped_rewards_sum_to_score_minus_penalty(batch: Batch, beta: float) -> None:
    x, y, z, mask = batch
    rewards = shape_rewards(z[:, 0], x, y, mask, beta)
    penalty = torch.where(mask, beta * (x - y), 0.0).sum(dim=1)
    assert_close(rewards.sum(dim=1), torch.where(mask.any(dim=1), z[:, 0], 0.0) - penalty)


@given(batches())
def test_k2_and_k3_are_never_negative(batch: Batch) -> None:
    assert (k2(batch.x, batch.y) >= 0).all()
    assert (k3(batch.x.clamp(-20, 20), batch.y.clamp(-20, 20)) >= 0).all()
    assert (k3(batch.x, batch.x) == 0).all()


@given(logits_and_ids(), st.floats(0.2, 5), st.floats(-50, 50))
def test_log_probs_are_a_distribution_at_any_temperature(
    case: tuple[Tensor, Tensor], temperature: float, shift: float
) -> None:
    logits, ids = case
    every = torch.stack([token_log_probs(logits, torch.full_like(ids, v), temperature) for v in range(logits.shape[2])])
    assert_close(every.exp().sum(dim=0), torch.ones_like(every[0]))
    assert_close(token_log_probs(logits + shift, ids, temperature), token_log_probs(logits, ids, temperature))
    spread = token_log_probs_and_entropy(logits, ids, temperature)[1]
    assert_close(spread, -(every.exp() * every).sum(dim=0))
    assert (spread >= 0).all()
    assert (spread <= math.log(logits.shape[2]) + 1e-9).all()


@given(logits_and_ids(), st.integers(0, 3))
def test_language_loss_adds_up_over_any_cut(case: tuple[Tensor, Tensor], cut: int) -> None:
    logits, ids = case
    mask = ids % 2 == 0
    parts = [language_loss(logits[rows], ids[rows], mask[rows]) for rows in (slice(0, cut), slice(cut, None))]
    whole = language_loss(logits, ids, mask)
    assert_close(parts[0].total + parts[1].total, whole.total)
    assert parts[0].count + parts[1].count == whole.count


@given(rankings(), st.floats(-100, 100), st.randoms(use_true_random=False))
def test_ranking_loss_knows_differences_and_order_only(case: tuple[Tensor, Tensor, Tensor], shift: float, rng) -> None:
    scores, prompts, ranks = case
    loss = ranking_loss(scores, prompts, ranks)
    order = torch.tensor(rng.sample(range(len(ranks)), len(ranks)))
    for other in (
        ranking_loss(scores + shift * (prompts + 1), prompts, ranks),  # a constant for each prompt
        ranking_loss(scores[order], prompts[order], ranks[order]),
        ranking_loss(scores, prompts, ranks * 10 - 3),
        ranking_loss(-scores, prompts, -ranks),  # best of the opposite
    ):
        assert_close(other.total, loss.total)
        assert other.count == loss.count
    assert loss.total >= 0
    flat = ranking_loss(torch.zeros_like(scores), prompts, ranks)
    assert_close(flat.total, flat.count.double() * math.log(2))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_accuracy_of_margins_and_of_their_opposites_is_one(margins: list[float]) -> None:
    there, back = pair_accuracy(torch.tensor(margins)), pair_accuracy(-torch.tensor(margins))
    assert there.total + back.total == there.count == len(margins)


@given(batches(), st.floats(0.05, 0.5))
def test_clipping_never_lowers_a_loss(batch: Batch, clip: float) -> None:
    x, y, z, mask = (t if t.dtype == torch.bool else t.clamp(-5, 5) for t in batch)
    wide, statistics = policy_loss(x, y, z, mask, clip=1e9)
    held, held_statistics = policy_loss(x, y, z, mask, clip)
    assert held.total >= wide.total - 1e-9
    assert_close(wide.total, -torch.where(mask, (x - y).exp() * z, 0.0).sum())
    assert statistics["clip_fraction"] <= held_statistics["clip_fraction"] <= held.count == mask.sum()
    assert held_statistics["approx_kl"] >= 0
    free, _ = value_loss(x, y, z, mask, clip=None)
    assert value_loss(x, y, z, mask, clip)[0].total >= free.total - 1e-9
    assert_close(free.total, torch.where(mask, (x - z) ** 2, 0.0).sum() / 2)


@given(batches(), batches())
def test_running_moments_do_not_care_about_the_order(first: Batch, second: Batch) -> None:
    states = []
    for order in ((first, second), (second, first)):
        moments = RunningMoments()
        for batch in order:
            moments.update(batch.x, batch.mask)
        states.append((moments.count, moments.mean, moments.variance))
    for one, other in zip(*states, strict=True):
        assert math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.integers(1, 15))
def test_calibration_error_is_a_share_and_one_bin_is_the_gap_of_means(
    pairs: list[tuple[float, bool]], bins: int
) -> None:
    confidence = torch.tensor([c for c, _ in pairs], dtype=torch.float64)
    correct = torch.tensor([float(right) for _, right in pairs], dtype=torch.float64)
    gap = (confidence.mean() - correct.mean()).abs()
    assert_close(calibration_error(calibration_sums(confidence, correct, bins=1)), gap)
    error = calibration_error(calibration_sums(confidence, correct, bins))
    assert gap - 1e-9 <= error <= 1 + 1e-9  # finer bins cancel less


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1
    mirrored = wilson_interval(n - successes, n)
    assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-9)
    assert wilson_interval(successes * 4, n * 4)[0] >= low - 1e-12  # more trials, a narrower interval


@given(st.lists(st.floats(-50, 50), max_size=20), st.integers(1, 512))
def test_adaptive_coefficient_stays_positive_and_moves_slowly(kls: list[float], episodes: int) -> None:
    controller = AdaptiveKL()
    for kl in kls:
        before = controller.coefficient
        controller.update(kl, episodes)
        assert controller.coefficient > 0
        assert abs(controller.coefficient / before - 1) <= 0.2 * episodes / 10_000 + 1e-12
        assert (controller.coefficient >= before) == (kl >= 6.0)

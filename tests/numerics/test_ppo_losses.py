"""PPO's clipped losses by hand, token by token."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from instructlit.losses import LossSum, policy_loss, sampler_weights, value_loss

NAN, INF = math.nan, math.inf


def test_policy_loss_by_hand() -> None:
    """Ratio and advantage on either side, clip 0.2; the last column is junk."""
    ratios, advantages = [1.5, 1.6, 0.5, 0.5, 1.1], tensor([[1.0, -1.0, 1.0, -1.0, 2.0, NAN]])
    log_probs = tensor([[math.log(r) - 1 for r in ratios] + [INF]], requires_grad=True)
    old = tensor([[-1.0] * 5 + [-INF]])
    mask = tensor([[True] * 5 + [False]])
    loss, statistics = policy_loss(log_probs, old, advantages, mask)
    # gain held at 1.2; loss not held; loss of gain not held; loss held at 0.8; inside
    assert_close(loss.total, tensor(-1.2 + 1.6 - 0.5 + 0.8 - 2.2))
    assert loss.count == 5
    loss.total.backward()
    # -A * ratio where not held, and nothing where held or masked
    assert log_probs.grad is not None
    assert_close(log_probs.grad, tensor([[0.0, 1.6, -0.5, 0.0, -2.2, 0.0]]))
    assert statistics["clip_fraction"] == 2
    assert_close(statistics["ratio_mean"], tensor(5.2))  # with each held within the clip it is 5.1
    # ratio - 1 - ln ratio
    kl = sum(ratio - 1 - math.log(ratio) for ratio in ratios)
    assert_close(statistics["approx_kl"], tensor(kl))
    assert not any(x.requires_grad for x in statistics.values())


def test_first_minibatch_is_the_plain_policy_gradient() -> None:
    log_probs = tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    advantages, mask = tensor([[1.0, -2.0], [0.5, 9.0]]), tensor([[True, True], [True, False]])
    loss, statistics = policy_loss(log_probs, log_probs.detach(), advantages, mask)
    assert loss == (0.5, 3)  # minus the sum of the advantages
    loss.total.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-1, 2], [-0.5, 0]]
    assert statistics["ratio_mean"] / loss.count == 1
    assert statistics["approx_kl"] == 0
    assert statistics["clip_fraction"] == 0


def test_weights_of_a_sampler_by_hand() -> None:
    """e^(trainer - sampler), at most 2; junk outside the mask is 0."""
    own = tensor([[-1.0, -1.0, -1.0, -1.0, NAN, -INF]])
    sampled = tensor([[-1.0, -1.0 - math.log(1.5), -1.0 - math.log(4), -1.0 + math.log(2), 3.0, -INF]])
    mask = tensor([[True] * 4 + [False] * 2])
    assert_close(sampler_weights(own, sampled, mask, 2.0), tensor([[1.0, 1.5, 2.0, 0.5, 0.0, 0.0]]))
    assert_close(sampler_weights(own, sampled, mask, 1.0), tensor([[1.0, 1.0, 1.0, 0.5, 0.0, 0.0]]))


def test_weighted_samples_of_another_policy_give_the_trainers_gradient() -> None:
    """In expectation over 5 tokens drawn by the sampler, where no weight is cut."""
    logits = tensor([0.3, -1.1, 0.8, 0.0, -0.4], dtype=torch.float64, requires_grad=True)
    sampler = tensor([0.1, -0.8, 0.9, -0.2, -0.3], dtype=torch.float64).log_softmax(0)
    advantages = tensor([1.0, -2.0, 0.5, 0.3, 3.0], dtype=torch.float64)
    own, mask = logits.log_softmax(0), torch.ones(5, dtype=torch.bool)

    def gradient(shares: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        one = [slice(i, i + 1) for i in range(5)]
        losses = [
            policy_loss(own[i], own[i].detach(), advantages[i], mask[i], weights=weights[i])[0].total for i in one
        ]
        # a token's term counts as often as it is drawn
        return torch.autograd.grad((shares * torch.stack(losses)).sum(), logits, retain_graph=True)[0]

    ones = torch.ones_like(sampler)
    exact = gradient(own.detach().exp(), ones)
    assert_close(gradient(sampler.exp(), sampler_weights(own, sampler, mask, 2.0)), exact)
    assert (gradient(sampler.exp(), ones) - exact).abs().max() > 0.02
    assert (gradient(sampler.exp(), sampler_weights(own, sampler, mask, 1.0)) - exact).abs().max() > 0.01


def test_weights_multiply_the_terms_and_carry_no_gradient() -> None:
    log_probs = tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    weights = tensor([[2.0, 0.5, NAN]], requires_grad=True)
    advantages, mask = tensor([[1.0, -2.0, 9.0]]), tensor([[True, True, False]])
    loss, statistics = policy_loss(log_probs, log_probs.detach(), advantages, mask, weights=weights)
    assert loss == (-2.0 + 1.0, 2)
    loss.total.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-2.0, 1.0, 0.0]]
    assert weights.grad is None
    assert statistics["ratio_mean"] == 2, "of the policy alone"


def test_clip_is_the_given_one() -> None:
    log_probs, old = tensor([[math.log(1.5)]]), tensor([[0.0]])
    one, mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    assert_close(policy_loss(log_probs, old, one, mask, clip=0.1)[0].total, tensor(-1.1))
    assert_close(policy_loss(log_probs, old, one, mask, clip=0.9)[0].total, tensor(-1.5))


def test_approx_kl_is_that_from_the_old_policy_to_the_new() -> None:
    """Averaged over what the old policy samples from 5 tokens, it is the exact KL(old || new)."""
    old = tensor([0.3, -1.1, 0.8, 0.0, -0.4], dtype=torch.float64).log_softmax(0)
    new = tensor([-0.2, 0.5, 0.1, -0.9, 0.6], dtype=torch.float64).log_softmax(0)
    one, mask = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    per_token = [policy_loss(new[i, None, None], old[i, None, None], one, mask)[1]["approx_kl"] for i in range(5)]
    assert_close((old.exp() * torch.stack(per_token)).sum(), (old.exp() * (old - new)).sum())


def test_value_loss_by_hand() -> None:
    """Rollout value 0, clip 0.2: held and worse, free and worse, inside; then junk."""
    values = tensor([[0.5, 0.5, 0.1, NAN]], requires_grad=True)
    returns, mask = tensor([[1.0, -1.0, 1.0, INF]]), tensor([[True, True, True, False]])
    loss, statistics = value_loss(values, tensor([[0.0, 0.0, 0.0, NAN]]), returns, mask)
    # half of (0.2 - 1)^2, (0.5 + 1)^2, (0.1 - 1)^2
    assert_close(loss.total, tensor((0.64 + 2.25 + 0.81) / 2))
    assert loss.count == 3
    loss.total.backward()
    assert values.grad is not None
    assert_close(values.grad, tensor([[0.0, 1.5, -0.9, 0.0]]))
    assert statistics["clip_fraction"] == 1


def test_value_loss_is_held_around_the_rollout_value_and_not_around_the_return() -> None:
    one = torch.ones(1, 1, dtype=torch.bool)
    # moved down from 10 to 9, held at 9.8, target 8: the free error is 1, the held 1.8
    loss, _ = value_loss(tensor([[9.0]]), tensor([[10.0]]), tensor([[8.0]]), one)
    assert_close(loss.total, tensor(1.8**2 / 2))
    loss, statistics = value_loss(tensor([[9.0]]), tensor([[10.0]]), tensor([[8.0]]), one, clip=None)
    assert_close(loss.total, tensor(0.5))
    assert statistics["clip_fraction"] == 0


def test_a_value_within_reach_is_not_held_by_its_last_bit() -> None:
    """Values near 0, as of a fresh head: in float32 the way there and back ends beside where it began."""
    generator = torch.Generator().manual_seed(0)
    values, old, returns = torch.rand(3, 64, 64, generator=generator) / 10
    _, statistics = value_loss(values, old, returns, torch.ones(64, 64, dtype=torch.bool))
    assert statistics["clip_fraction"] == 0


@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5]])
def test_micro_batches_change_no_gradient(sizes: list[int]) -> None:
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(8, 5, 4, dtype=torch.float64)
    old, advantages, returns = (torch.randn(8, 5, dtype=torch.float64) for _ in range(3))
    mask = torch.arange(5) <= torch.arange(8)[:, None] % 5

    def both(rows: slice) -> tuple[LossSum, LossSum]:
        y = x[rows] @ weight
        policy, _ = policy_loss(y, old[rows], advantages[rows], mask[rows])
        value, _ = value_loss(y, old[rows], returns[rows], mask[rows])
        return policy, value

    policy, value = both(slice(None))
    (expected,) = torch.autograd.grad(policy.mean() + 0.1 * value.mean(), weight)
    got, start = torch.zeros_like(weight), 0
    for size in sizes:
        p, v = both(slice(start, start + size))
        (part,) = torch.autograd.grad(p.mean(policy.count) + 0.1 * v.mean(value.count), weight)
        got, start = got + part, start + size
    assert_close(got, expected)

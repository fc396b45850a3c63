"""The KL estimators against the exact divergence of a 5-token vocabulary, and the controller of their coefficient."""

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from instructlit.errors import UserError
from instructlit.ops import AdaptiveKL, FixedKL, k1, k2, k3, sequence_kl

POLICY = tensor([0.3, -1.1, 0.8, 0.0, -0.4], dtype=torch.float64)
REFERENCE = tensor([-0.2, 0.5, 0.1, -0.9, 0.6], dtype=torch.float64)


def exact_kl(p_logits: Tensor, q_logits: Tensor) -> float:
    p, q = p_logits.softmax(0), q_logits.softmax(0)
    return sum(pi * math.log(pi / qi) for pi, qi in zip(p.tolist(), q.tolist(), strict=True))


def by_finite_differences(function, at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function of 5 numbers."""
    nudges = torch.eye(len(at), dtype=at.dtype) * step
    return tensor([(function(at + n) - function(at - n)) / (2 * step) for n in nudges], dtype=at.dtype)


def expected(estimator, of: Tensor) -> Tensor:
    """Expectation over tokens sampled from the policy, whose probabilities carry no gradient here."""
    values = estimator(of.log_softmax(0), REFERENCE.log_softmax(0))
    return (of.detach().softmax(0) * values).sum()


def test_values_by_hand() -> None:
    # policy twice as sure as the reference, then half as sure
    log_probs, ref = tensor([math.log(0.4), math.log(0.1)]), tensor([math.log(0.2), math.log(0.2)])
    ln2 = math.log(2)
    assert_close(k1(log_probs, ref), tensor([ln2, -ln2]))
    assert_close(k2(log_probs, ref), tensor([ln2**2 / 2, ln2**2 / 2]))
    assert_close(k3(log_probs, ref), tensor([0.5 - 1 + ln2, 2 - 1 - ln2]))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased(estimator) -> None:
    assert_close(expected(estimator, POLICY).item(), exact_kl(POLICY, REFERENCE))


def test_k2_is_close_while_the_policy_is() -> None:
    near = REFERENCE + 0.05 * POLICY
    values = k2(near.log_softmax(0), REFERENCE.log_softmax(0))
    assert_close((near.softmax(0) * values).sum().item(), exact_kl(near, REFERENCE), rtol=0.05, atol=0)


def test_k1_in_the_reward_pushes_along_the_gradient_of_the_kl() -> None:
    """The policy gradient with reward k1, sum over y of p(y) k1(y) grad log p(y), is the exact gradient."""
    logits = POLICY.clone().requires_grad_()
    log_probs = logits.log_softmax(0)
    reward = k1(log_probs, REFERENCE.log_softmax(0)).detach()
    (log_probs.exp().detach() * reward * log_probs).sum().backward()
    assert logits.grad is not None
    assert_close(logits.grad, by_finite_differences(lambda x: exact_kl(x, REFERENCE), POLICY), rtol=1e-6, atol=1e-8)


def test_as_losses_the_three_have_three_gradients() -> None:
    forward = by_finite_differences(lambda x: exact_kl(x, REFERENCE), POLICY)
    backward = by_finite_differences(lambda x: exact_kl(REFERENCE, x), POLICY)
    for estimator, gradient in ((k1, torch.zeros(5, dtype=torch.float64)), (k2, forward), (k3, backward)):
        logits = POLICY.clone().requires_grad_()
        expected(estimator, logits).backward()
        assert logits.grad is not None
        assert_close(logits.grad, gradient, rtol=1e-6, atol=1e-8)
    assert (forward - backward).abs().max() > 0.01  # the two would not have been told apart otherwise


def test_k3_keeps_its_digits_near_agreement() -> None:
    # d^2 / 2 - d^3 / 6 + ...; exp(-d) - 1 + d in float32 is off by several parts in a hundred
    assert_close(k3(tensor([1e-3]), tensor([0.0])), tensor([5e-7 - 1e-9 / 6]), rtol=1e-3, atol=0)


def test_sequence_kl_is_the_signed_sum_over_the_response() -> None:
    log_probs = tensor([[-1.0, -2.0, math.nan], [-1.0, math.nan, math.nan]])
    ref = tensor([[-1.5, -1.0, math.inf], [-3.0, math.nan, 0.0]])
    mask = tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert sequence_kl(log_probs, ref, mask).tolist() == [0.5 - 1, 2]  # a mean over tokens would give -0.25


def test_adaptive_controller_replays_the_formula() -> None:
    """Target 6 nats, horizon 10,000 and 512 episodes: a factor of 1 + error * 0.0512 a rollout."""
    controller = AdaptiveKL(initial=0.15, target=6.0, horizon=10_000)
    replay = [
        (9.0, 1.01024),  # error 0.5, clipped to 0.2
        (6.6, 1.00512),  # error 0.1
        (6.0, 1.0),  # on target
        (5.7, 0.99744),  # error -0.05
        (0.0, 0.98976),  # error -1, clipped to -0.2
        (-3.0, 0.98976),  # an estimate below zero is an error like another
    ]
    coefficient = 0.15
    for kl, factor in replay:
        controller.update(kl, n_episodes=512)
        coefficient *= factor
        assert math.isclose(controller.coefficient, coefficient, rel_tol=1e-12)
    assert math.isclose(coefficient, 0.15 * 0.99218, rel_tol=1e-4)


def test_adaptive_controller_scales_with_the_episodes() -> None:
    once, eight = AdaptiveKL(initial=1.0, target=1.0, horizon=1000), AdaptiveKL(initial=1.0, target=1.0, horizon=1000)
    once.update(1.1, n_episodes=80)
    eight.update(1.1, n_episodes=10)
    assert math.isclose(once.coefficient, 1.008)
    assert math.isclose(eight.coefficient, 1.001)


def test_controllers_resume() -> None:
    straight, resumed = AdaptiveKL(), AdaptiveKL()
    straight.update(9.0, 512)
    resumed.load_state_dict(straight.state_dict())
    straight.update(1.0, 512)
    resumed.update(1.0, 512)
    assert resumed.coefficient == straight.coefficient != AdaptiveKL().coefficient
    fixed = FixedKL(0.05)
    fixed.update(100.0, 512)
    assert fixed.coefficient == 0.05
    assert fixed.state_dict() == {}
    fixed.load_state_dict(straight.state_dict())
    assert fixed.coefficient == 0.05, "a setting, whatever the run began with"
    fresh = AdaptiveKL(0.3)
    fresh.load_state_dict(fixed.state_dict())
    assert fresh.coefficient == 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedKL(-0.1),
        lambda: FixedKL(math.nan),
        lambda: FixedKL(math.inf),
        lambda: AdaptiveKL(initial=-1.0),
        lambda: AdaptiveKL(initial=0.0),  # every later coefficient would be a multiple of it
        lambda: AdaptiveKL(target=0.0),
        lambda: AdaptiveKL(target=math.inf),
        lambda: AdaptiveKL(horizon=0),
        lambda: AdaptiveKL(horizon=100).update(1.0, n_episodes=500),  # could bring the coefficient to 0
    ],
)
def test_settings_that_make_no_sense_are_told_to_the_user(make) -> None:
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_diverged_policy_does_not_move_the_coefficient(kl: float) -> None:
    controller = AdaptiveKL()
    with pytest.raises(ValueError, match="diverged"):
        controller.update(kl, 512)
    assert controller.coefficient == 0.15

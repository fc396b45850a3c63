"""Learning rates by hand, and resuming in the middle."""

import math

import pytest
import torch
from torch import nn

from instructlit.errors import UserError
from instructlit.models.schedules import ConstantWithWarmup, CosineToFraction, LinearToZero, Schedule


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates(schedule: Schedule, steps: int) -> list[float]:
    """The rate that each of the next `steps` updates uses."""
    used = []
    for _ in range(steps):
        used.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return used


def test_cosine_goes_to_a_tenth_without_warmup() -> None:
    schedule = CosineToFraction(optimizer(1.0))
    schedule.set_total_steps(4)
    # 0.1 + 0.9 (1 + cos(pi t / 4)) / 2 for t = 0, 1, 2, 3, and a tenth when the run is over
    expected = [1.0, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5))]
    assert rates(schedule, 4) == pytest.approx(expected)
    assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_the_papers_warmup_starts_at_a_tenth_and_then_stays() -> None:
    schedule = ConstantWithWarmup(optimizer(2.0), warmup_steps=3, initial_fraction=0.1)
    schedule.set_total_steps(2)  # shorter than the warm-up: allowed, since the rate does not depend on the end
    assert rates(schedule, 5) == pytest.approx([0.2, 0.8, 1.4, 2.0, 2.0])


def test_linear_falls_by_equal_steps_and_reaches_zero_at_the_end() -> None:
    schedule = LinearToZero(optimizer(1.0))
    schedule.set_total_steps(4)
    assert rates(schedule, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert schedule.optimizer.param_groups[0]["lr"] == 0.0


def test_the_fall_begins_after_the_warmup() -> None:
    schedule = LinearToZero(optimizer(1.0), warmup_steps=2, initial_fraction=0.5, total_steps=6)
    assert rates(schedule, 6) == pytest.approx([0.5, 0.75, 1.0, 0.75, 0.5, 0.25])


def test_every_parameter_group_keeps_its_own_rate() -> None:
    schedule = LinearToZero(optimizer(1.0, 10.0), total_steps=2)
    schedule.optimizer.step()
    schedule.step()
    assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx([0.5, 5.0])


def test_a_total_given_by_hand_is_not_overwritten() -> None:
    schedule = LinearToZero(optimizer(1.0), total_steps=2)
    schedule.set_total_steps(100)
    assert rates(schedule, 2) == pytest.approx([1.0, 0.5])


def test_past_the_end_the_rate_stays_at_its_last() -> None:
    schedule = CosineToFraction(optimizer(1.0), final_fraction=0.25, total_steps=2)
    assert rates(schedule, 5)[2:] == pytest.approx([0.25, 0.25, 0.25])


@pytest.mark.parametrize("make", [CosineToFraction, LinearToZero, ConstantWithWarmup])
def test_resumed_in_the_middle_it_gives_the_rates_of_an_unbroken_run(make: type[Schedule]) -> None:
    whole = make(optimizer(3e-4), warmup_steps=2)
    whole.set_total_steps(10)
    expected = rates(whole, 10)
    first = make(optimizer(3e-4), warmup_steps=2)
    first.set_total_steps(10)
    rates(first, 4)
    second = make(optimizer(3e-4), warmup_steps=2)
    second.set_total_steps(10)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, 6) == expected[4:]


def test_the_state_is_plain_numbers() -> None:
    schedule = CosineToFraction(optimizer(1.0), total_steps=5)
    state = schedule.state_dict()
    kinds = (int, float, bool, str, type(None))
    assert all(isinstance(v, kinds) or all(isinstance(x, kinds) for x in v) for v in state.values()), state
    assert "optimizer" not in state


def test_wrong_numbers_and_a_warmup_longer_than_the_run_are_refused() -> None:
    for wrong in ({"warmup_steps": -1}, {"initial_fraction": 2.0}, {"total_steps": 0}, {"final_fraction": -0.1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            CosineToFraction(optimizer(1.0), **wrong)  # type: ignore[arg-type]
    for warmup in (10, 20):
        with pytest.raises(UserError, match=f"{warmup} updates, but the run has 10"):
            LinearToZero(optimizer(1.0), warmup_steps=warmup).set_total_steps(10)


def test_a_second_update_without_a_total_is_a_mistake_of_the_caller() -> None:
    schedule = LinearToZero(optimizer(1.0))
    with pytest.raises(RuntimeError, match="set_total_steps"):
        rates(schedule, 2)

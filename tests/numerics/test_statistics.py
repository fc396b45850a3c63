"""Running moments, calibration, explained variance and the Wilson interval."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from instructlit.intervals import wilson_interval
from instructlit.ops import RunningMoments, calibration_error, calibration_sums, explained_variance


def test_running_moments_by_hand() -> None:
    moments = RunningMoments()
    assert (moments.mean, moments.std) == (0, 0)
    moments.update(tensor([1.0, 2.0]))
    moments.update(tensor([math.nan, 6.0]), tensor([False, True]))
    moments.update(tensor([math.nan]), tensor([False]))
    # 1, 2, 6: squares around the mean of 3 are 4 + 1 + 9
    assert moments.count == 3
    assert math.isclose(moments.mean, 3)
    assert math.isclose(moments.variance, 14 / 3)
    assert math.isclose(moments.std, math.sqrt(14 / 3))


def test_running_moments_of_a_stream_are_those_of_the_whole() -> None:
    x = torch.randn(1000, dtype=torch.float64) * 0.5 + 1e6  # a difference of squares would keep no digit of 0.25
    moments = RunningMoments()
    for part in x.split([1, 9, 500, 490]):
        moments.update(part)
    assert math.isclose(moments.mean, x.mean().item(), rel_tol=1e-12)
    assert math.isclose(moments.variance, x.var(correction=0).item(), rel_tol=1e-6)


def test_running_moments_add_up_in_float64() -> None:
    moments = RunningMoments()
    moments.update(tensor([16_777_216.0, 1.0]))  # 2^24 + 1 is not a float32
    assert moments.mean == 8_388_608.5


def test_what_differs_by_rounding_alone_is_no_measure() -> None:
    moments = RunningMoments()
    moments.update(tensor([10_000.0, 10_000.001]))
    assert_close(moments.normalized(tensor([10_003.0])), tensor([3.0]), atol=2e-3, rtol=0)
    moments.update(tensor([9_998.0, 10_002.0]))
    assert_close(moments.normalized(tensor([10_003.0])), tensor([3 / math.sqrt(2)]), atol=2e-3, rtol=0)


def test_running_moments_on_ranks_and_after_a_resume(on_ranks) -> None:
    first, second = torch.randn(6), torch.randn(6) + 3
    whole = RunningMoments()
    whole.update(first)
    state = whole.state_dict()
    whole.update(second)

    def resumed(part: torch.Tensor, reduce) -> RunningMoments:
        moments = RunningMoments()
        moments.load_state_dict(state)
        moments.update(part, reduce=reduce)
        return moments

    for moments in on_ranks(resumed, [second[:1], second[1:]]):
        assert moments.count == 12
        assert math.isclose(moments.mean, whole.mean, rel_tol=1e-6)
        assert math.isclose(moments.std, whole.std, rel_tol=1e-6)
    assert all(type(value) is float for value in state.values())


def test_responses_that_did_not_end_stay_out_of_the_moments() -> None:
    scores, ended = tensor([1.0, 3.0, -100.0]), tensor([True, True, False])
    moments = RunningMoments()
    moments.update(scores, ended)
    assert (moments.mean, moments.std) == (2, 1)


def test_calibration_error_by_hand() -> None:
    # bins of 0.1: (0.55, right), (0.65, wrong), (0.95, right) and (0.95, wrong)
    confidence, correct = tensor([0.55, 0.65, 0.95, 0.95]), tensor([1.0, 0.0, 1.0, 0.0])
    sums = calibration_sums(confidence, correct)
    assert sums.shape == (3, 10)
    assert_close(sums[:, 9], tensor([2, 1.9, 1]))
    # |1 - 0.55| + |0 - 0.65| + |1 - 1.9| over 4
    assert_close(calibration_error(sums), tensor(0.5))
    # sums of two batches add up to the sums of both
    halves = calibration_sums(confidence[:1], correct[:1]) + calibration_sums(confidence[1:], correct[1:])
    assert_close(halves, sums)


def test_calibration_error_has_two_ends_and_an_empty_case() -> None:
    assert calibration_error(calibration_sums(tensor([0.75] * 4), tensor([1.0, 1, 1, 0]))) == 0
    assert calibration_error(calibration_sums(tensor([1.0] * 4), torch.zeros(4))) == 1
    assert calibration_error(calibration_sums(torch.zeros(0), torch.zeros(0))) == 0
    # the lower edge of a bin belongs to it, and 1 to the last
    assert calibration_sums(tensor([0.5, 0.75, 1.0]), torch.zeros(3), bins=2, low=0.5)[0].tolist() == [1, 2]


def test_explained_variance_by_hand() -> None:
    returns, mask = tensor([[0.0, 2.0, math.nan], [4.0, 6.0, math.nan]]), tensor([[1, 1, 0]] * 2).bool()
    # the returns' variance is 5; halving each leaves errors 0, 1, 2, 3 with variance 5/4
    values = torch.where(mask, returns / 2, -99.0)
    assert_close(explained_variance(values, returns, mask), tensor(0.75))
    assert_close(explained_variance(values / 100, returns / 100, mask), tensor(0.75))
    assert explained_variance(torch.where(mask, returns, 7.0), returns, mask) == 1
    assert explained_variance(torch.full((2, 3), 3.0), returns, mask) == 0  # a constant explains nothing
    assert explained_variance(-returns, returns, mask) == -3
    assert explained_variance(values, torch.ones(2, 3), mask) == 0  # nothing to explain


def test_explained_variance_on_ranks_is_that_of_the_whole(on_ranks) -> None:
    returns = torch.randn(6, 4) + torch.arange(6.0)[:, None]
    values, mask = returns + torch.randn(6, 4), torch.rand(6, 4) > 0.3
    parts = on_ranks(
        lambda rows, reduce: explained_variance(values[rows], returns[rows], mask[rows], reduce),
        [slice(0, 2), slice(2, 6)],
    )
    for part in parts:
        assert_close(part, explained_variance(values, returns, mask))


def test_wilson_interval_against_known_values() -> None:
    # 8 of 10: (0.8 + 0.19207 -+ 1.96 sqrt(0.016 + 0.009604)) / 1.384146
    low, high = wilson_interval(8, 10)
    assert math.isclose(low, 0.490162, abs_tol=1e-5)
    assert math.isclose(high, 0.943318, abs_tol=1e-5)
    # none of 10: the upper end is z^2 / (n + z^2)
    low, high = wilson_interval(0, 10)
    assert low == 0
    assert math.isclose(high, 3.841459 / 13.841459, abs_tol=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert math.isclose(wilson_interval(10, 10)[1], 1)
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(3, 2)

"""Masked reductions, whitening, last tokens and positions."""

import math
from functools import partial

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from instructlit.losses import policy_loss, sampler_weights, value_loss
from instructlit.ops import (
    calibration_sums,
    explained_variance,
    gae,
    gather_last,
    k1,
    k2,
    k3,
    last_index,
    masked_mean,
    masked_moments,
    masked_sum,
    missing_eos,
    position_ids,
    sequence_kl,
    shape_rewards,
    whiten,
)

NAN, INF = math.nan, math.inf
X = tensor([[1.0, 2.0, NAN], [INF, 6.0, NAN], [NAN, NAN, -INF]])
MASK = tensor([[True, True, False], [False, True, False], [False, False, False]])


def test_reductions_by_hand_with_junk_outside_the_mask() -> None:
    assert masked_sum(X, MASK) == 9
    assert masked_mean(X, MASK) == 3
    assert masked_sum(X, MASK, dim=1).tolist() == [3, 6, 0]
    assert masked_mean(X, MASK, dim=1).tolist() == [1.5, 6, 0]
    assert masked_mean(X, MASK, dim=0).tolist() == [1, 4, 0]
    # squares around the mean of 3: 4 + 1 + 9, over 3 values and not 2
    count, mean, variance = masked_moments(X, MASK)
    assert (count, mean) == (3, 3)
    assert_close(variance, tensor(14 / 3))
    assert masked_moments(X[1], MASK[1]) == (1, 6, 0)


def test_nothing_counts_gives_zero_and_no_nan() -> None:
    nothing = torch.zeros_like(MASK)
    assert masked_sum(X, nothing) == 0
    assert masked_mean(X, nothing) == 0
    assert masked_moments(X, nothing)[2] == 0
    assert whiten(X, nothing).tolist() == [[0, 0, 0]] * 3


def test_junk_outside_the_mask_gets_no_gradient_and_spoils_none() -> None:
    x = X.clone().requires_grad_()
    (masked_mean(x, MASK) + whiten(x, MASK).square().sum()).backward()
    assert x.grad is not None
    assert x.grad[~MASK].tolist() == [0] * 6
    assert x.grad.isfinite().all()


def test_a_mask_that_is_not_boolean_or_not_of_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="boolean"):
        masked_sum(X, MASK.long())
    with pytest.raises(ValueError, match="shapes differ"):
        masked_mean(X, MASK[:, :1])  # would broadcast


@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        *((function, 1) for function in (masked_sum, masked_moments, whiten, gather_last)),
        *((function, 2) for function in (sequence_kl, gae, explained_variance, partial(sampler_weights, cap=2.0))),
        *((function, 3) for function in (policy_loss, value_loss)),
        (lambda one, other, mask: shape_rewards(torch.zeros(2), one, other, mask, beta=0.1), 2),
        *((lambda one, mask, of=of: of(one, mask.float()), 1) for of in (k1, k2, k3)),
        (lambda one, mask: calibration_sums(one[0], mask[0].float()), 1),
        (lambda one, mask: missing_eos(one[0], mask[0], "replace", -1.0), 1),
    ],
)
def test_no_tensor_is_spread_over_the_others_unseen(function, tensors: int) -> None:
    """One column in the place of three: torch would repeat it."""
    arguments = [torch.zeros(2, 3) for _ in range(tensors)] + [torch.ones(2, 3, dtype=torch.bool)]
    function(*arguments)
    for place, whole in enumerate(arguments):
        with pytest.raises(ValueError, match="shapes differ"):
            function(*arguments[:place], whole[:, :1], *arguments[place + 1 :])


def test_whitening_by_hand() -> None:
    # 1, 2, 6: mean 3, standard deviation sqrt(14 / 3)
    std = math.sqrt(14 / 3)
    assert_close(whiten(X, MASK), tensor([[-2 / std, -1 / std, 0], [0, 3 / std, 0], [0, 0, 0]]))
    kept = tensor([[-2 / std + 3, -1 / std + 3, 0], [0, 3 / std + 3, 0], [0, 0, 0]])
    assert_close(whiten(X, MASK, shift_mean=False), kept)


def test_whitening_a_constant_gives_zeros() -> None:
    assert whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)).abs().max() == 0


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_on_ranks_is_whitening_the_whole(on_ranks, shift_mean: bool) -> None:
    x, mask = torch.randn(6, 5) * 3 + 10, torch.rand(6, 5) > 0.4
    mask[4:] = False  # the last rank has nothing that counts and still takes part
    cuts = (slice(0, 1), slice(1, 4), slice(4, 6))
    parts = on_ranks(
        lambda cut, reduce: whiten(x[cut], mask[cut], shift_mean, reduce),
        cuts,
    )
    whole = whiten(x, mask, shift_mean)
    assert_close(torch.cat(parts), whole)
    # each rank by its own statistics would have been something else
    assert not torch.allclose(torch.cat([whiten(x[cut], mask[cut], shift_mean) for cut in cuts]), whole, atol=0.1)


def test_variance_survives_a_large_mean() -> None:
    x = tensor([[10_000.0, 10_001.0, 10_002.0]])
    assert_close(masked_moments(x, torch.ones_like(x, dtype=torch.bool))[2], tensor(2 / 3))


def test_last_index_on_either_side_of_the_padding() -> None:
    mask = tensor([[1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    assert last_index(mask).tolist() == [2, 3, 1, 0]
    values = tensor([[1.0, 2, 3, NAN], [NAN, 6, 7, 8], [NAN, 10, NAN, NAN], [NAN, NAN, NAN, NAN]])
    assert gather_last(values, mask).tolist() == [3, 8, 10, 0]
    assert last_index(mask[:, :0]).tolist() == [0, 0, 0, 0]
    assert gather_last(values[:, :0], mask[:, :0]).tolist() == [0, 0, 0, 0]


def test_positions_start_at_zero_on_the_first_real_token() -> None:
    left, right = tensor([[0, 0, 1, 1, 1]]).bool(), tensor([[1, 1, 1, 0, 0]]).bool()
    assert position_ids(left)[left].tolist() == [0, 1, 2]
    assert position_ids(right)[right].tolist() == [0, 1, 2]
    assert position_ids(left).min() == 0  # an embedding table has no row -1

"""The next-token loss: what is summed, over what, and that micro-batches change no gradient."""

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from instructlit.losses import LossSum, language_loss

LN2 = math.log(2)


def readable_logits(rows: int, width: int) -> Tensor:
    """Probabilities 1/8, 2/8, 5/8 of tokens 0, 1, 2 at even columns, and of 2, 1, 0 at odd ones."""
    even = tensor([1.0, 2.0, 5.0]).log()
    return torch.stack([even if t % 2 == 0 else even.flip(0) for t in range(width)]).expand(rows, width, 3).clone()


def test_loss_by_hand() -> None:
    ids = tensor([[2, 0, 1, 2], [1, 1, 0, 0]])
    mask = tensor([[0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    loss = language_loss(readable_logits(2, 4), ids, mask)
    # row 0: token 0 by column 0 is 1/8, token 1 by column 1 is 2/8
    # row 1: token 0 by column 1 is 5/8, token 0 by column 2 is 1/8
    assert_close(loss.total, tensor(3 * LN2 + 2 * LN2 + math.log(8 / 5) + 3 * LN2))
    assert loss.count == 4
    assert_close(loss.mean(), loss.total / 4)


def test_the_first_token_is_never_a_target() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss = language_loss(readable_logits(1, 4), tensor([[2, 0, 1, 2]]), mask)
    assert loss.count == 3
    mask[0, 0] = False
    assert language_loss(readable_logits(1, 4), tensor([[2, 0, 1, 2]]), mask) == loss


def test_a_batch_without_targets_has_loss_zero_and_a_gradient_of_zero() -> None:
    logits = readable_logits(1, 4).requires_grad_()
    loss = language_loss(logits, tensor([[2, 0, 1, 2]]), torch.zeros(1, 4, dtype=torch.bool))
    assert loss == (0, 0)
    loss.mean().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_loss_sum_adds_and_divides() -> None:
    one, two = LossSum(tensor(3.0), tensor(2.0)), LossSum(tensor(6.0), tensor(1.0))
    assert one.mean() == 1.5
    assert one.mean(3) + two.mean(tensor(3.0)) == 3
    assert LossSum(tensor(0.0), tensor(0.0)).mean() == 0
    assert not LossSum(torch.ones((), requires_grad=True), tensor(1.0)).detach().total.requires_grad


@pytest.mark.parametrize("sizes", [[1] * 8, [8], [3, 5], [1, 6, 1]])
def test_micro_batches_change_no_gradient(sizes: list[int]) -> None:
    """8 rows of different lengths as one batch and cut up; a mean of means would weigh the short rows too much."""
    weight = torch.randn(11, 11, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(11, (8, 6))
    mask = torch.arange(6) <= torch.arange(8)[:, None] % 6
    whole = language_loss(weight[ids], ids, mask)
    (expected,) = torch.autograd.grad(whole.mean(), weight)
    global_count = whole.count

    parts = [language_loss(weight[i], i, m) for i, m in zip(ids.split(sizes), mask.split(sizes), strict=True)]
    loss = sum((part.mean(global_count) for part in parts), tensor(0.0))
    (got,) = torch.autograd.grad(loss, weight, retain_graph=True)
    assert_close(got, expected)
    assert_close(sum(part.total for part in parts), whole.total)

    if len(sizes) > 1:
        (wrong,) = torch.autograd.grad(sum((part.mean() for part in parts), tensor(0.0)) / len(parts), weight)
        assert not torch.allclose(wrong, expected, rtol=1e-2)

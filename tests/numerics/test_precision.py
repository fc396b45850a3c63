"""Half-precision inputs give the float64 answer to float32 accuracy: nothing is rounded on the way.

The reference takes the same bfloat16 numbers to float64 first. Computed in bfloat16 the results would be off by a part
in a hundred or so, which each test's bound is far below.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from instructlit.losses import language_loss, pair_margins, policy_loss, ranking_loss, value_loss
from instructlit.losses.preference import comparison_pairs
from instructlit.ops import (
    explained_variance,
    gae,
    k1,
    k2,
    k3,
    masked_mean,
    masked_moments,
    missing_eos,
    next_token_log_probs,
    sequence_kl,
    shape_rewards,
    token_log_probs,
    token_log_probs_and_entropy,
    whiten,
)

IDS = torch.arange(24).reshape(3, 8) * 37 % 900
MASK = torch.arange(8) < torch.tensor([8, 5, 2])[:, None]
PROMPTS, RANKS = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 2, 2, 2, 1])
ENDED = torch.tensor([True, False, True])

# each case: (B, T) tensors x, y, z in one dtype, and logits (B, T, V)
CASES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "token_log_probs": lambda x, y, z, logits: token_log_probs(logits, IDS, 0.7),
    "next_token_log_probs": lambda x, y, z, logits: next_token_log_probs(logits, IDS),
    "entropy": lambda x, y, z, logits: token_log_probs_and_entropy(logits, IDS, 0.7)[1],
    "language_loss": lambda x, y, z, logits: language_loss(logits, IDS, MASK).total,
    "k1": lambda x, y, z, logits: k1(x, y),
    "k2": lambda x, y, z, logits: k2(x, y),
    "k3": lambda x, y, z, logits: k3(x, y),
    "sequence_kl": lambda x, y, z, logits: sequence_kl(x, y, MASK),
    "masked_mean": lambda x, y, z, logits: masked_mean(x, MASK),
    "masked_moments": lambda x, y, z, logits: masked_moments(x, MASK)[2],
    "whiten": lambda x, y, z, logits: whiten(x, MASK),
    "gae": lambda x, y, z, logits: torch.stack(gae(x, y, MASK)),
    "missing_eos": lambda x, y, z, logits: missing_eos(x[:, 0], ENDED, "subtract", 0.123),
    "shape_rewards": lambda x, y, z, logits: shape_rewards(x[:, 0], y, z, MASK, 0.02),
    "explained_variance": lambda x, y, z, logits: explained_variance(x, y, MASK),
    "policy_loss": lambda x, y, z, logits: policy_loss(x, y, z, MASK)[0].total,
    "value_loss": lambda x, y, z, logits: value_loss(x, y, z, MASK)[0].total,
    "ranking_loss": lambda x, y, z, logits: ranking_loss(x[0, :5], PROMPTS, RANKS).total,
    "pair_margins": lambda x, y, z, logits: pair_margins(x[0, :5], comparison_pairs(PROMPTS, RANKS)),
}


def tensors() -> list[Tensor]:
    x, y, z = (torch.randn(3, 8) - 3 for _ in range(3))
    return [x, y, z, torch.randn(3, 8, 900) * 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_against_float64(case: str, dtype: torch.dtype) -> None:
    given = [x.to(dtype) for x in tensors()]
    got, reference = CASES[case](*given), CASES[case](*(x.double() for x in given))
    assert got.dtype == torch.float32
    assert reference.dtype == torch.float64
    assert_close(got.double(), reference, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["token_log_probs", "language_loss", "policy_loss", "value_loss", "ranking_loss"])
def test_gradient_is_rounded_once(case: str, dtype: torch.dtype) -> None:
    given = [x.to(dtype).requires_grad_() for x in tensors()]
    wide = [x.detach().double().requires_grad_() for x in given]
    CASES[case](*given).sum().backward()
    CASES[case](*wide).sum().backward()
    compared = 0
    for narrow, reference in zip(given, wide, strict=True):
        if reference.grad is None:
            continue
        compared += 1
        assert narrow.grad is not None
        assert narrow.grad.dtype == dtype
        # half of the distance between neighbouring numbers, and what float16 loses below its smallest normal number
        step = torch.finfo(dtype).eps / 2 * 1.01
        assert_close(narrow.grad.double(), reference.grad, rtol=step, atol=1e-6)
    assert compared > 0


def test_bfloat16_arithmetic_would_have_been_noticed() -> None:
    x, _, _, logits = (x.bfloat16() for x in tensors())
    naive = torch.log_softmax(logits / 0.7, -1).gather(-1, IDS[..., None])[..., 0]
    assert (naive.double() - token_log_probs(logits.double(), IDS, 0.7)).abs().max() > 1e-2
    assert (x[MASK].var(correction=0).double() - masked_moments(x.double(), MASK)[2]).abs() > 1e-4

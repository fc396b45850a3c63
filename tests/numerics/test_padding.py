"""Padding changes nothing: every masked function, with 0, 7 or 50 more columns of junk on either side.

Each case is a function of (B, T) tensors and their mask. What it returns along time is cut back before it is compared,
so that every output, gradient included, must be that of the unpadded call and zero on the padding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from instructlit.losses import language_loss, policy_loss, value_loss
from instructlit.ops import (
    RunningMoments,
    explained_variance,
    gae,
    gather_last,
    last_index,
    masked_mean,
    masked_moments,
    masked_sum,
    position_ids,
    sequence_kl,
    shape_rewards,
    whiten,
)

ROWS, WIDTH, VOCABULARY = 4, 6, 5
PADS = (0, 7, 50)


@dataclass
class Inputs:
    """Three real tensors, scores, ids with logits, and the mask."""

    x: Tensor  # (B, T)
    y: Tensor  # (B, T)
    z: Tensor  # (B, T)
    logits: Tensor  # (B, T, V)
    ids: Tensor  # (B, T)
    scores: Tensor  # (B,)
    mask: Tensor  # (B, T)


def inputs() -> Inputs:
    """Rows of 6, 4, 1 and 6 tokens, unpadded as far as a batch can be."""
    mask = torch.arange(WIDTH) < torch.tensor([6, 4, 1, 6])[:, None]
    x, y, z = (torch.where(mask, torch.randn(ROWS, WIDTH), 0.0).requires_grad_() for _ in range(3))
    logits = torch.randn(ROWS, WIDTH, VOCABULARY, requires_grad=True)
    return Inputs(x, y, z, logits, torch.randint(VOCABULARY, (ROWS, WIDTH)), torch.randn(ROWS), mask)


def padded(clean: Inputs, side: str, n: int) -> Inputs:
    """The same rows with junk in every place that does not count: NaN, infinity and huge numbers, and random ids."""

    def pad(x: Tensor, junk: list[float]) -> Tensor:
        shape = (ROWS, n, *x.shape[2:])
        filling = torch.tensor(junk, dtype=x.dtype)[torch.randint(len(junk), shape)]
        pieces = [filling, x] if side == "left" else [x, filling]
        wide = torch.cat(pieces, dim=1)
        inside = clean.mask if x.dim() == 2 else clean.mask[..., None]
        off = torch.zeros(ROWS, n, *inside.shape[2:], dtype=torch.bool)
        keep = torch.cat([off, inside] if side == "left" else [inside, off], dim=1)
        other = torch.tensor(junk, dtype=x.dtype)[torch.randint(len(junk), wide.shape)]
        return torch.where(keep, wide, other)

    wild = [math.nan, math.inf, -math.inf, 1e30]
    finite = [1e4, -1e4, 0.0]  # a model's logits on padding are meaningless but finite
    off = torch.zeros(ROWS, n, dtype=torch.bool)
    return Inputs(
        pad(clean.x, wild),
        pad(clean.y, wild),
        pad(clean.z, wild),
        pad(clean.logits, finite),
        pad(clean.ids, [0, 1, 4]),
        clean.scores,
        torch.cat([off, clean.mask] if side == "left" else [clean.mask, off], dim=1),
    )


def moments(i: Inputs) -> list[Tensor]:
    running = RunningMoments()
    running.update(i.x, i.mask)
    return [torch.tensor([running.count, running.mean, running.std])]


def after_first(mask: Tensor) -> Tensor:
    """Targets: the tokens that have a real token before them, as in a prompt with its completion."""
    return mask & mask.roll(1, dims=1) & (torch.arange(mask.shape[1]) > 0)


CASES: dict[str, Callable[[Inputs], list[Tensor]]] = {
    "masked_sum": lambda i: [masked_sum(i.x, i.mask), masked_sum(i.x, i.mask, dim=1)],
    "masked_mean": lambda i: [masked_mean(i.x, i.mask), masked_mean(i.x, i.mask, dim=1)],
    "masked_moments": lambda i: list(masked_moments(i.x, i.mask)),
    "whiten": lambda i: [whiten(i.x, i.mask), whiten(i.x, i.mask, shift_mean=False)],
    "running_moments": moments,
    "gather_last": lambda i: [gather_last(i.x, i.mask)],
    "sequence_kl": lambda i: [sequence_kl(i.x, i.y, i.mask)],
    "gae": lambda i: list(gae(i.x, i.y, i.mask, gamma=0.9, lam=0.8)),
    "shape_rewards": lambda i: [shape_rewards(i.scores, i.x, i.y, i.mask, beta=0.3)],
    "explained_variance": lambda i: [explained_variance(i.x, i.y, i.mask)],
    "policy_loss": lambda i: [*policy_loss(i.x, i.y, i.z, i.mask)[0], *policy_loss(i.x, i.y, i.z, i.mask)[1].values()],
    "value_loss": lambda i: [*value_loss(i.x, i.y, i.z, i.mask)[0], *value_loss(i.x, i.y, i.z, i.mask)[1].values()],
    "language_loss": lambda i: [*language_loss(i.logits, i.ids, after_first(i.mask))],
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("n", PADS)
@pytest.mark.parametrize("case", CASES)
def test_padding_changes_neither_value_nor_gradient(case: str, n: int, side: str) -> None:
    clean = inputs()
    wide = padded(clean, side, n)
    leaves = [clean.x, clean.y, clean.z, clean.logits]
    weights: list[Tensor] = []
    gradients = []
    for data in (clean, wide):
        outputs = CASES[case](data)
        if data is clean:
            expected = outputs
            weights = [torch.randn_like(x.float()) for x in outputs]
        for k, (got, reference) in enumerate(zip(outputs, expected, strict=True)):
            if got.dim() == 2:
                assert got[~data.mask].abs().sum() == 0
                outputs[k] = got = got[:, n:] if side == "left" and data is wide else got[:, :WIDTH]
            assert_close(got, reference)
        weighed = [(w * x).sum() for w, x in zip(weights, outputs, strict=True) if x.requires_grad]
        gradients.append(torch.autograd.grad(weighed, leaves, allow_unused=True) if weighed else ())
    for of_clean, of_wide in zip(*gradients, strict=True):
        if of_clean is not None:
            assert of_clean.isfinite().all()
            assert_close(of_wide, of_clean)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("n", PADS)
def test_places_move_with_the_padding(n: int, side: str) -> None:
    clean = inputs()
    wide = padded(clean, side, n)
    shift = n if side == "left" else 0
    assert (last_index(wide.mask) - shift).tolist() == last_index(clean.mask).tolist() == [5, 3, 0, 5]
    assert torch.equal(position_ids(wide.mask)[wide.mask], position_ids(clean.mask)[clean.mask])

"""Numbers that say how good an estimate is: calibration and explained variance."""

import torch
from torch import Tensor

from instructlit.ops.masking import Reduce, check_same_shape, masked_moments, widen


def calibration_sums(confidence: Tensor, correct: Tensor, bins: int = 10, low: float = 0.0) -> Tensor:
    """Sums by bin of the confidence, to be added over batches and ranks and then read by `calibration_error`.

    Args:
        confidence: (N,), stated probability of being right, `low` .. 1.
        correct: (N,), 1 where it was right and 0 where not (a half for a tie).
        bins: as in `calibration_bins`.
        low: least confidence possible: 0.5 for the favourite of a pair.

    Returns:
        (3, bins) float32: count, sum of confidence, sum of correct.
    """
    check_same_shape(confidence=confidence, correct=correct)
    index = calibration_bins(confidence, bins, low)
    confidence, correct = widen(confidence), widen(correct)
    sums = confidence.new_zeros(3, bins)
    for row, value in enumerate((torch.ones_like(confidence), confidence, correct)):
        sums[row].scatter_add_(0, index, value)
    return sums


def calibration_bins(confidence: Tensor, bins: int, low: float) -> Tensor:
    """The bin (N,) int64 of each confidence (N,), of bins of equal width between `low` and 1: one on an edge belongs to
    the upper bin, 1 to the last.
    """
    return ((widen(confidence) - low) / (1 - low) * bins).long().clamp(0, bins - 1)


def calibration_error(sums: Tensor) -> Tensor:
    """Expected calibration error of `calibration_sums`: mean |accuracy - confidence| weighted by bin counts, 0 .. 1.

    Source: Guo et al. 2017 (arXiv 1706.04599) section 2.
    """
    count, confidence, correct = widen(sums)
    return (confidence - correct).abs().sum() / count.sum().clamp(min=1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce | None = None) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the positions that count, a scalar.

    1 is a perfect value function, 0 no better than a constant, below 0 worse than one. It is 0 where the returns do not
    vary, since then there is nothing to explain.
    """
    check_same_shape(mask, values=values, returns=returns)
    variance = masked_moments(returns, mask, reduce)[2]
    residual = masked_moments(widen(returns) - widen(values), mask, reduce)[2]
    return torch.where(variance > 0, 1 - residual / variance, 0.0)

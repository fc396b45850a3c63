"""Masked reductions and whitening: the one place that decides "which positions count".

Masks are boolean and True means "counts". What stands where a mask is False never matters, NaN and infinity included.
Halves are widened to float32 before anything is summed; float64 stays float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Adds a small tensor of sums over all ranks and returns it; every rank calls it equally often."""


def widen(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64: the precision of every log-softmax, loss and statistic here."""
    return x if x.dtype == torch.float64 else x.float()


def check_same_shape(mask: Tensor | None = None, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape (broadcasting would hide a mistake) and `mask` is boolean."""
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"a mask is boolean and True means the position counts; found {mask.dtype}")
        shapes["mask"] = tuple(mask.shape)
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where it counts and 0 elsewhere, widened; the gradient of what does not count is 0."""
    return torch.where(mask, widen(x), 0.0)


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` over the positions that count, along `dim` or over everything."""
    check_same_shape(mask, x=x)
    filled = zero_outside(x, mask)
    return filled.sum() if dim is None else filled.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `x` over the positions that count, along `dim` or over everything; 0 where nothing counts."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_moments(x: Tensor, mask: Tensor, reduce: Reduce | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and population variance of `x` over the positions that count, three scalars.

    Two passes, the second around the mean, since a difference of squares loses every digit when the mean is large.
    With `reduce` the statistics are those of all ranks' positions together. Mean and variance are 0 where nothing
    counts.
    """
    check_same_shape(mask, x=x)
    reduce = reduce or _identity
    filled = zero_outside(x, mask)
    count, total = reduce(torch.stack([mask.sum().to(filled.dtype), filled.sum()]))
    mean = total / count.clamp(min=1)
    squares = zero_outside((filled - mean).square(), mask).sum()
    variance = reduce(squares.reshape(1))[0] / count.clamp(min=1)
    return count, mean, variance


def whiten(
    x: Tensor, mask: Tensor, shift_mean: bool = True, reduce: Reduce | None = None, epsilon: float = 1e-8
) -> Tensor:
    """`x` scaled to variance 1, and moved to mean 0 if `shift_mean`, over the positions that count; 0 elsewhere.

    Advantages are whitened with the shift, rewards (where a recipe whitens them) without: their sign has a meaning.

    Args:
        x: values, any shape.
        mask: True where a value counts, same shape.
        shift_mean: move the mean to 0; otherwise it stays where it is.
        reduce: adds a tensor of sums over the ranks, so that all ranks whiten by the statistics of the whole batch.
        epsilon: added to the variance, in the units of x squared.

    Source: Huang et al. 2024 (arXiv 2403.17031), detail "whiten rewards and advantages"; population variance.
    """
    _, mean, variance = masked_moments(x, mask, reduce)
    whitened = (zero_outside(x, mask) - mean) * torch.rsqrt(variance + epsilon)
    return zero_outside(whitened if shift_mean else whitened + mean, mask)


def last_index(mask: Tensor) -> Tensor:
    """Column of each row's last True, (B, T) to (B,) int64, on whichever side the padding is; 0 for an empty row."""
    if not mask.shape[1]:
        return torch.zeros(mask.shape[0], dtype=torch.int64, device=mask.device)
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, 0).amax(dim=1)


def last_only(mask: Tensor) -> Tensor:
    """(B, T) bool: each row's last True alone."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return mask & (columns == last_index(mask)[:, None])


def gather_last(x: Tensor, mask: Tensor) -> Tensor:
    """Each row's value at its last position that counts, (B, T) to (B,); 0 for a row where nothing counts."""
    check_same_shape(mask, x=x)
    if not x.shape[1]:
        return x.new_zeros(x.shape[0])
    return torch.where(mask.any(dim=1), x.gather(1, last_index(mask)[:, None])[:, 0], 0)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that start at 0 on each row's first real token, (B, T) int64; on padding they mean nothing.

    With these, a left-padded row gives the logits of the same row without padding.
    """
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _identity(sums: Tensor) -> Tensor:
    return sums

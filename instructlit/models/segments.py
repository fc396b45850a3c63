"""Attention on a CPU over rows that follow one another without padding: segment by segment, short ones several at once.

A segment may continue an earlier one, whose tokens it then sees: completions behind a prompt that is there once.
Segments of like length that continue none, and have scores that fit a cache, are laid one above the other, padded on
the right, for one product: a causal mask then hides the padding, and no gradient comes from it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

ALONE = -1
"""The parent of a segment that continues none."""

PLAIN_SCORES = 1 << 18
"""Scores of a head (queries x keys) up to which a CPU is faster with plain matrix products than with its SDPA."""

BATCH_SCORES = 1 << 20
"""Scores of all heads that segments taken at once may have: they stay in a core's cache."""

LONGEST_IN_BATCH = {2: 256, 4: 48}
"""Tokens of a segment, by the bytes of a number, up to which taking several at once is faster: where 16 bits are
computed, a product of one segment alone is too small for its set-up."""

_LIKE = 0.75  # the shortest of a batch over the longest


def by_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: list[list[int]], dropout: float, scaling: float | None
) -> Tensor:
    """What every token finds among those of its segment up to itself, and all of the segment's parent.

    Args:
        query: (1, H, W, D).
        key: of the same shape.
        value: (1, H, W, E); E is mostly D.
        segments: (length, parent) each, an earlier segment's index or `ALONE`; the lengths add up to W.
        dropout: probability that a weight is dropped.
        scaling: factor on the scores; None is 1 / sqrt(D).

    Returns:
        (1, H, W, E).
    """
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    if not dropout and all(parent == ALONE for _, parent in segments):
        lengths = tuple(length for length, _ in segments)
        laid = _laid(lengths, query.shape[1], LONGEST_IN_BATCH.get(query.dtype.itemsize, 0))
        if laid is not None:
            return _in_batches(query, key, value, laid, scale)
    return _one_by_one(query, key, value, segments, dropout, scale)


def batched(lengths: tuple[int, ...], heads: int, longest: int) -> tuple[tuple[int, ...], ...]:
    """Indices of segments of like length that are taken at once, from the longest to the shortest; one that is too
    long, or like no other, by itself.

    Args:
        lengths: of the segments.
        heads: how many there are.
        longest: that a segment in a batch may be.
    """
    batches: list[list[int]] = []
    for i in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]):
        first = lengths[batches[-1][0]] if batches else 0
        fits = batches and (len(batches[-1]) + 1) * heads * first**2 <= BATCH_SCORES
        if fits and first <= longest and lengths[i] >= _LIKE * first:
            batches[-1].append(i)
        else:
            batches.append([i])
    return tuple(tuple(batch) for batch in batches)


@dataclass(frozen=True)
class _Laid:
    """Where tokens (W,) of segments stand when these are laid one above the other, batch by batch: N places."""

    shapes: list[tuple[int, int]]  # segments and places of each, by batch
    token: Tensor  # (N,) whose place it is; that of padding is its segment's last token's
    place: Tensor  # (W,)


@lru_cache(maxsize=8)  # a forward asks in every layer
@torch.inference_mode(False)  # a tensor of that mode could not be used by a pass with a gradient
def _laid(lengths: tuple[int, ...], heads: int, longest: int) -> _Laid | None:
    """How segments of these lengths are taken at once; None where too few of them go together."""
    batches = batched(lengths, heads, longest)
    if 2 * len(batches) > len(lengths):
        return None
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(dim=0) - sizes
    shapes, tokens, real = [], [], []
    for batch in batches:
        size, start = sizes[list(batch)][:, None], starts[list(batch)][:, None]
        columns = torch.arange(lengths[batch[0]])
        shapes.append((len(batch), len(columns)))
        tokens.append((start + columns.minimum(size - 1)).flatten())
        real.append((columns < size).flatten())
    token = torch.cat(tokens)
    place = torch.empty(int(sizes.sum()), dtype=torch.int64)
    at = torch.cat(real).nonzero()[:, 0]
    place[token[at]] = at
    return _Laid(shapes, token, place)


def _in_batches(query: Tensor, key: Tensor, value: Tensor, laid: _Laid, scale: float) -> Tensor:
    """(1, H, W, E), batch by batch."""
    heads, size = query.shape[1], value.shape[3]
    rows = [n * m for n, m in laid.shapes]
    queries, keys, values = (
        x[0].transpose(0, 1).flatten(1).index_select(0, laid.token).split(rows) for x in (query, key, value)
    )
    found = []
    for (n, m), *parts in zip(laid.shapes, queries, keys, values, strict=True):
        q, k, v = (x.view(n, m, heads, -1).transpose(1, 2).reshape(n * heads, m, -1) for x in parts)
        attended = _attended(q, k, v, scale)
        found.append(attended.view(n, heads, m, size).transpose(1, 2).reshape(n * m, heads * size))
    out = torch.cat(found).index_select(0, laid.place)
    return out.view(-1, heads, size).transpose(0, 1)[None]


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, segments: list[list[int]], dropout: float, scale: float
) -> Tensor:
    """(1, H, W, E), segment by segment."""
    lengths = [length for length, _ in segments]
    # `split` and not slices, whose backward would fill a whole row with zeros for each
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    found = []
    for i, (length, parent) in enumerate(segments):
        if not length:
            found.append(values[i])
            continue
        k, v = keys[i], values[i]
        if parent != ALONE and lengths[parent]:
            k, v = torch.cat([keys[parent], k], dim=2), torch.cat([values[parent], v], dim=2)
        found.append(_attended(queries[i][0], k[0], v[0], scale, dropout)[None])
    return torch.cat(found, dim=2)


def _attended(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention of the last n of m positions, (B, n, E): each sees itself and all before it."""
    n, m = query.shape[1], key.shape[1]
    if dropout or n * m > PLAIN_SCORES:
        mask = None if n == m else _bias(m, query.dtype)[m - n : m, :m]
        args = (query[None], key[None], value[None], mask, dropout)
        return F.scaled_dot_product_attention(*args, is_causal=n == m, scale=scale)[0]
    bias = _bias(m, query.dtype)[m - n : m, :m].expand(len(query), n, m)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, dim=-1), value)


def _bias(size: int, dtype: torch.dtype) -> Tensor:
    """(at least size, as many): 0 where a row sees a column, minus infinity behind the diagonal."""
    return _bias_of(1 << (size - 1).bit_length(), dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _bias_of(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), -math.inf, dtype=dtype).triu(1)

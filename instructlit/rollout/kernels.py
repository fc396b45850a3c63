"""A decoder's small operations on a GPU, each in one pass over its numbers: Triton kernels.

Between two matrix products of a step lie a dozen operations on a few kilobytes; one by one, each costs its start. Every
function here says the same as the plain one beside it in `llama` and `cache`. Triton comes with torch for CUDA.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
# where torch is the build for CPUs there is no Triton
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

_KEYS_AT_ONCE = 64
_FEWEST_ROWS = 16  # of a matrix product in Triton


def add_and_norm(x: Tensor, more: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Add `more` to the residual stream in place; its RMS norm in `dtype`.

    Args:
        x: (W, d) float32.
        more: (W, d) of any float dtype, or None.
        weight: (d,) float32.
        epsilon: of the norm.
        dtype: of the result.
    """
    rows, width = x.shape
    out = torch.empty_like(x, dtype=dtype)
    _add_and_norm[(rows,)](
        x, x if more is None else more, weight, out, epsilon, width, more is not None, next_power_of_2(width)
    )
    return out


@triton.jit
def _add_and_norm(x, more, weight, out, epsilon, width, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + place + column, mask=inside, other=0.0)
    if ADDS:
        value += tl.load(more + place + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + place + column, value, mask=inside)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + epsilon)
    normed = value * scale * tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + place + column, normed.to(out.dtype.element_ty), mask=inside)


def turn_and_keep(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor,
    keys: Tensor,
    values: Tensor,
    norms: tuple[Tensor, float] | None,
) -> Tensor:
    """Turn queries and keys by their positions, and keep keys and values; the queries (slots, heads, size).

    Args:
        qkv: (slots, (heads + 2 kv heads) * size), of one token of every slot.
        cos: (length, size) float32.
        sin: (length, size) float32, the first half with its sign changed.
        places: (slots,) int64: positions, and places in the cache.
        keys: (slots, kv heads, length, size), written at the places.
        values: likewise.
        norms: weights (2, size) float32 of the norms of a query's head and of a key's, and epsilon; None has none.
    """
    slots, kv_heads, length, size = keys.shape
    heads = qkv.shape[1] // size - 2 * kv_heads
    query = torch.empty((slots, heads, size), dtype=qkv.dtype, device=qkv.device)
    weights, epsilon = norms or (cos, 0.0)
    _turn_and_keep[(slots, heads + 2 * kv_heads)](
        qkv, cos, sin, places, query, keys, values, weights, epsilon,
        heads, kv_heads, length, size, norms is not None, next_power_of_2(size),
    )  # fmt: skip
    return query


@triton.jit
def _turn_and_keep(
    qkv, cos, sin, places, query, keys, values, weights, epsilon,
    heads, kv_heads, length, size: tl.constexpr, NORMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < size
    other = (column + size // 2) % size  # the one that it turns with
    place = tl.load(places + slot)
    source = qkv + (slot * (heads + 2 * kv_heads) + head) * size
    value = tl.load(source + column, mask=inside, other=0.0)
    if head < heads + kv_heads:
        x = value.to(tl.float32)
        y = tl.load(source + other, mask=inside, other=0.0).to(tl.float32)
        if NORMS:
            scale = tl.rsqrt(tl.sum(x * x, axis=0) / size + epsilon)
            weight = weights + tl.where(head < heads, 0, size)
            x = x * scale * tl.load(weight + column, mask=inside, other=0.0)
            y = y * scale * tl.load(weight + other, mask=inside, other=0.0)
        angle = place * size + column
        turned = x * tl.load(cos + angle, mask=inside, other=0.0) + y * tl.load(sin + angle, mask=inside, other=0.0)
        value = turned.to(value.dtype)
    if head < heads:
        tl.store(query + (slot * heads + head) * size + column, value, mask=inside)
    elif head < heads + kv_heads:
        at = ((slot * kv_heads + head - heads) * length + place) * size
        tl.store(keys + at + column, value, mask=inside)
    else:
        at = ((slot * kv_heads + head - heads - kv_heads) * length + place) * size
        tl.store(values + at + column, value, mask=inside)


def attend(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """What one query a slot and head finds among the first keys of its slot, (slots, heads, size); 0 among none.

    Args:
        query: (slots, heads, size); neighbouring heads share one of keys and values.
        keys: (slots, kv heads, length, size).
        values: likewise.
        lengths: (slots,) int64.
        scale: factor on the scores.
    """
    slots, heads, size = query.shape
    kv_heads, length = keys.shape[1:3]
    out = torch.empty_like(query)
    group = heads // kv_heads
    _attend[(slots * kv_heads,)](
        query, keys, values, lengths, out, scale, kv_heads, length, size, group,
        max(_FEWEST_ROWS, next_power_of_2(group)), max(_FEWEST_ROWS, next_power_of_2(size)), _KEYS_AT_ONCE,
    )  # fmt: skip
    return out


@triton.jit
def _attend(
    query, keys, values, lengths, out, scale, kv_heads, length, size: tl.constexpr, group: tl.constexpr,
    GROUP: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0).to(tl.int64)
    filled = tl.load(lengths + which // kv_heads).to(tl.int32)
    row, column, key = tl.arange(0, GROUP), tl.arange(0, SIZE), tl.arange(0, KEYS)
    here = (which * group + row[:, None]) * size + column[None, :]
    inside = (row[:, None] < group) & (column[None, :] < size)
    q = tl.load(query + here, mask=inside, other=0.0)
    cache = which * length * size
    highest = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    found = tl.zeros((GROUP, SIZE), tl.float32)
    for start in range(0, filled, KEYS):
        seen = start + key < filled
        at = cache + (start + key)[:, None] * size + column[None, :]
        there = seen[:, None] & (column[None, :] < size)
        k = tl.load(keys + at, mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        shares = tl.exp(scores - higher[:, None])
        fade = tl.exp(highest - higher)
        total = total * fade + tl.sum(shares, axis=1)
        v = tl.load(values + at, mask=there, other=0.0)
        found = found * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        highest = higher
    found = tl.where(total[:, None] > 0, found / total[:, None], 0.0)
    tl.store(out + here, found.to(out.dtype.element_ty), mask=inside)


def gated(gate_up: Tensor) -> Tensor:
    """SiLU of the first half (W, n) of (W, 2 n), times the second."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    block = min(1024, next_power_of_2(width))
    _gated[(rows, triton.cdiv(width, block))](gate_up, out, width, block)
    return out


@triton.jit
def _gated(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)

"""A decoder's small operations on a GPU, each in one pass over its numbers: Triton kernels.

Between two matrix products of a step lie a dozen operations on a few kilobytes; one by one, each costs its start. Every
function here says the same as the plain one beside it in `llama` and `cache`. Triton comes with torch for CUDA.
"""

# Triton's language is none that a checker of Python's types knows, and beside torch's build for CPUs it is not there.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

_TILE_BYTES = 1 << 14  # of keys, and of values; a GPU has room for six and more, one for each of three steps of a loop
_DRAWN_AT_ONCE = 1024
_FEWEST_ROWS = 16  # of a matrix product in Triton


def _start(kernel: Any, grid: tuple[int, ...], first: Tensor, *others: Any) -> None:
    """Start a kernel on the device of its first argument; Triton's own choice is the process's current one."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *others)


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
    added, adds = (x, False) if more is None else (more, True)
    _start(_add_and_norm, (rows,), x, added, weight, out, epsilon, width, adds, next_power_of_2(width))
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


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor,
    before: Tensor,
    keys: Tensor,
    values: Tensor,
    norms: tuple[Tensor, float] | None,
    scale: float,
) -> Tensor:
    """What one query a slot and head finds among the keys of its slot, its own among them, (slots, heads * size).

    Before that queries and keys are turned by their positions, and keys and values kept.

    Args:
        qkv: (slots, (heads + 2 kv heads) * size), of one token of every slot; neighbouring heads share one of the keys.
        cos: (length, size) float32.
        sin: (length, size) float32, the first half with its sign changed.
        places: (slots,) int64: positions, and places in the cache.
        before: (slots,) int64: so many places in the cache are read besides.
        keys: (slots, kv heads, length, size), written at the places.
        values: likewise.
        norms: weights (2, size) float32 of the norms of a query's head and of a key's, and epsilon; None has none.
        scale: factor on the scores.
    """
    slots, kv_heads, length, size = keys.shape
    group = qkv.shape[1] // size // kv_heads - 2
    out = qkv.new_empty((slots, kv_heads * group * size))
    weights, epsilon = norms or (cos, 0.0)
    padded = max(_FEWEST_ROWS, next_power_of_2(size))
    _start(
        _attend, (slots * kv_heads,),
        qkv, cos, sin, places, before, keys, values, out, weights, epsilon, scale, kv_heads, length, size, group,
        norms is not None, max(_FEWEST_ROWS, next_power_of_2(group + 1)), padded,
        keys_at_once(padded, keys.element_size()),
    )  # fmt: skip
    return out


def keys_at_once(size: int, bytes_each: int) -> int:
    """How many keys of this size, a power of two, are looked at together: as many as the smallest GPU has room for,
    99 KiB of shared memory for each block of threads where others have 163 or 227."""
    return max(_FEWEST_ROWS, min(64, _TILE_BYTES // (size * bytes_each)))


@triton.jit
def _attend(
    qkv, cos, sin, places, before, keys, values, out, weights, epsilon, scale, kv_heads, length,
    size: tl.constexpr, group: tl.constexpr, NORMS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0).to(tl.int64)
    slot, kv_head = which // kv_heads, which % kv_heads
    heads = group * kv_heads
    column, key = tl.arange(0, SIZE), tl.arange(0, KEYS)
    there, other = column < size, (column + size // 2) % size  # the one that it turns with
    # rows: the queries that share a key, and behind them the key
    row = tl.arange(0, ROWS)[:, None]
    inside = (row <= group) & there[None, :]
    token = qkv + slot * (heads + 2 * kv_heads) * size
    head = token + tl.where(row < group, kv_head * group + row, heads + kv_head) * size
    x = tl.load(head + column[None, :], mask=inside, other=0.0).to(tl.float32)
    y = tl.load(head + other[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        weight = weights + tl.where(row < group, 0, size)
        norm = tl.rsqrt(tl.sum(x * x, axis=1) / size + epsilon)[:, None]
        x = x * norm * tl.load(weight + column[None, :], mask=inside, other=0.0)
        y = y * norm * tl.load(weight + other[None, :], mask=inside, other=0.0)
    place = tl.load(places + slot)
    angle = place * size + column
    turned = x * tl.load(cos + angle, mask=there, other=0.0)[None, :]
    turned += y * tl.load(sin + angle, mask=there, other=0.0)[None, :]
    query = turned.to(out.dtype.element_ty)
    own = tl.sum(tl.where(row == group, turned, 0.0), axis=0).to(out.dtype.element_ty)
    value = tl.load(token + (heads + kv_heads + kv_head) * size + column, mask=there, other=0.0)
    cache = which * length * size
    tl.store(keys + cache + place * size + column, own, mask=there)
    tl.store(values + cache + place * size + column, value, mask=there)

    highest = tl.sum(query.to(tl.float32) * own.to(tl.float32)[None, :], axis=1) * scale
    total = tl.full((ROWS,), 1.0, tl.float32)
    found = tl.zeros((ROWS, SIZE), tl.float32) + value.to(tl.float32)[None, :]
    filled = tl.load(before + slot).to(tl.int32)
    for start in range(0, filled, KEYS):
        seen = start + key < filled
        at, valid = cache + (start + key)[:, None] * size + column[None, :], seen[:, None] & there[None, :]
        k = tl.load(keys + at, mask=valid, other=0.0)
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        shares = tl.exp(scores - higher[:, None])
        fade = tl.exp(highest - higher)
        total = total * fade + tl.sum(shares, axis=1)
        v = tl.load(values + at, mask=valid, other=0.0)
        found = found * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        highest = higher
    here = (slot * heads + kv_head * group + row) * size + column[None, :]
    tl.store(out + here, (found / total[:, None]).to(out.dtype.element_ty), mask=inside & (row < group))


def gated(gate_up: Tensor) -> Tensor:
    """SiLU of the first half (W, n) of (W, 2 n), times the second."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    block = min(1024, next_power_of_2(width))
    _start(_gated, (rows, triton.cdiv(width, block)), gate_up, out, width, block)
    return out


@triton.jit
def _gated(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


def draw(logits: Tensor, temperature: float, chance: Tensor) -> tuple[Tensor, Tensor]:
    """As `drawing.draw`: the sums of blocks of the vocabulary first, then which block it is, and where in that block.

    One sum after another along the whole vocabulary would leave most of a GPU idle.

    Args:
        logits: (B, V) of any float dtype.
        temperature: they are divided by it.
        chance: (B, 1) float64, uniform in [0, 1).
    """
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, _DRAWN_AT_ONCE)
    tops = torch.empty((rows, blocks), dtype=torch.float32, device=logits.device)
    sums = torch.empty_like(tops, dtype=torch.float64)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    log_probs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    logits, chance = logits.contiguous(), chance.contiguous()
    _start(_sum_blocks, (rows, blocks), logits, tops, sums, vocabulary, blocks, temperature, _DRAWN_AT_ONCE)
    _start(
        _pick, (rows,),
        logits, tops, sums, chance, tokens, log_probs, vocabulary, blocks, temperature,
        _DRAWN_AT_ONCE, next_power_of_2(blocks),
    )  # fmt: skip
    return tokens, log_probs


@triton.jit
def _sum_blocks(logits, tops, sums, vocabulary, blocks, temperature, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * vocabulary + column, mask=column < vocabulary, other=float("-inf"))
    x = x.to(tl.float32) / temperature
    top = tl.maximum(tl.max(x, axis=0), -1e38)  # a block of minus infinities sums to 0
    tl.store(tops + row * blocks + block, top)
    tl.store(sums + row * blocks + block, tl.sum(tl.exp(x - top).to(tl.float64), axis=0))


@triton.jit
def _pick(
    logits, tops, sums, chance, tokens, log_probs, vocabulary, blocks, temperature,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block, inside = tl.arange(0, BLOCKS), tl.arange(0, BLOCK)
    top = tl.load(tops + row * blocks + block, mask=block < blocks, other=float("-inf"))
    peak = tl.max(top, axis=0)
    shares = tl.load(sums + row * blocks + block, mask=block < blocks, other=0.0) * tl.exp(top - peak).to(tl.float64)
    total = tl.sum(shares, axis=0)
    point = tl.load(chance + row) * total
    # the first whose sum with all before it passes the point; where rounding lets none, the last that has a share
    passed = tl.sum((tl.cumsum(shares, axis=0) <= point).to(tl.int32), axis=0)
    which = tl.minimum(passed, tl.max(tl.where(shares > 0, block, 0), axis=0))
    point -= tl.sum(tl.where(block < which, shares, 0.0), axis=0)
    column = which * BLOCK + inside
    x = tl.load(logits + row * vocabulary + column, mask=column < vocabulary, other=float("-inf"))
    x = x.to(tl.float32) / temperature
    here = tl.exp(x - peak).to(tl.float64)
    passed = tl.sum((tl.cumsum(here, axis=0) <= point).to(tl.int32), axis=0)
    place = tl.minimum(passed, tl.max(tl.where(here > 0, inside, 0), axis=0))
    picked = tl.sum(tl.where(inside == place, x, 0.0), axis=0)
    tl.store(tokens + row, which * BLOCK + place)
    tl.store(log_probs + row, (picked - peak - tl.log(total)).to(tl.float32))

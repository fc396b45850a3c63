"""A decoder's small operations on a GPU, each in one pass over its numbers: Triton kernels.

Between two matrix products of a step lie a dozen operations on a few kilobytes; one by one, each costs its start. Every
function here says the same as the plain one beside it in `llama` and `cache`. Triton comes with torch for CUDA.
"""

# Triton's language is none that a checker of Python's types knows, and beside torch's build for CPUs it is not there.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

_KEYS_AT_ONCE = 64
_DRAWN_AT_ONCE = 1024
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
    _sum_blocks[(rows, blocks)](logits, tops, sums, vocabulary, blocks, temperature, _DRAWN_AT_ONCE)
    _pick[(rows,)](
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

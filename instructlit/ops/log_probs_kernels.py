"""What `log_probs` does in tiles, as two kernels of Triton for a GPU: each logit is read once and nothing is widened in
memory. In tiles the same takes some twenty bytes of traffic a logit forward and thirty backward, here two and four.

Only to be imported where Triton is: `log_probs` asks for that.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

BLOCK, WARPS = 4096, 8


def norms_and_entropies(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log-sum-exp and entropy of logits / temperature along the last dimension, float32 of the other dimensions.

    Args:
        logits: (B, T, V) or (M, V), contiguous, of at most 32 bits.
        temperature: above 0.
    """
    norms, entropies = (logits.new_empty(logits.shape[:-1], dtype=torch.float32) for _ in range(2))
    columns = logits.shape[-1]
    with torch.cuda.device_of(logits):
        launched: Any = _read[(norms.numel(),)]  # type: ignore[index]
        launched(logits, norms, entropies, columns, temperature, BLOCK=BLOCK, num_warps=WARPS)
    return norms, entropies


def gradient(logits: Tensor, ids: Tensor, norms: Tensor, scale: Tensor, temperature: float) -> Tensor:
    """scale * (1[v = id] - p(v)), of the shape and dtype of `logits`.

    Args:
        logits: as in `norms_and_entropies`, whose `norms` and `temperature` these are.
        ids: int64 of the shape of `norms`.
        norms: float32.
        scale: float32 of the shape of `norms`.
        temperature: above 0.
    """
    found, columns = torch.empty_like(logits), logits.shape[-1]
    with torch.cuda.device_of(logits):
        launched: Any = _write[(norms.numel(), triton.cdiv(columns, BLOCK))]  # type: ignore[index]
        tensors = (logits, ids.contiguous(), norms, scale.contiguous(), found)
        launched(*tensors, columns, temperature, BLOCK=BLOCK, num_warps=WARPS)
    return found


@triton.jit
def _read(logits, norms, entropies, columns, temperature, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top = float("-inf")
    total = 0.0  # of exp(x - top)
    moment = 0.0  # of x exp(x - top)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * columns + at, mask=at < columns, other=float("-inf")).to(tl.float32) / temperature
        larger = tl.maximum(top, tl.max(x, 0))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        share, before = tl.exp(x - base), tl.exp(top - base)
        total = total * before + tl.sum(share, 0)
        moment = moment * before + tl.sum(tl.where(x == float("-inf"), 0.0, x * share), 0)
        top = larger
    norm = top + tl.log(total)
    tl.store(norms + row, norm)
    tl.store(entropies + row, norm - moment / total)


@triton.jit
def _write(logits, ids, norms, scale, found, columns, temperature, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(logits + row * columns + at, mask=inside, other=0.0).to(tl.float32) / temperature
    chosen = at == tl.load(ids + row)
    value = tl.load(scale + row) * (tl.where(chosen, 1.0, 0.0) - tl.exp(x - tl.load(norms + row)))
    tl.store(found + row * columns + at, value.to(found.dtype.element_ty), mask=inside)

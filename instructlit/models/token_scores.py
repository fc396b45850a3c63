"""A language model's scores of given tokens, without the logits of a whole batch.

The logits are the largest tensor of a step: 2 x 2,048 positions over 152,000 tokens are 2.5 GB in float32, and their
gradient as much again. Here the head sees only the positions that are asked for, a few at a time, and computes each
piece again in the backward pass (as Chen et al. 2016, arXiv 1604.06174, do for layers), so that one piece is in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from instructlit.models.adapters import unwrapped
from instructlit.models.blocks import computes_again
from instructlit.models.last_block import only_at
from instructlit.models.packed import Packed, keeps_states, lacking, pays, takes_positions
from instructlit.ops.log_probs import token_log_probs
from instructlit.ops.masking import position_ids
from instructlit.types import TokenBatch

HEAD_ELEMENTS = 1 << 26
"""Logits that the head computes at once on a CPU: 128 MiB in 16 bits."""

GPU_HEAD_ELEMENTS = 1 << 29
"""The same on a GPU: 1 GiB in 16 bits, and in the backward pass as much again for their gradient. Every piece casts the
head's weight under autocast and adds to its gradient, so that few are better than many."""

GPU_HEAD_KEPT = 1 << 31
"""Logits on a GPU up to which all are computed at once and kept for the backward pass, where activations are kept too:
4 GiB in 16 bits and as much again for their gradient. Computing them again would be a fourteenth more of all products,
for a model with 1.2 billion weights and a vocabulary of 128,256."""

_TILE_ROWS = 128  # of a GPU's matrix products: the last tile would be filled in part

Read = Callable[[Tensor, Tensor], Tensor]
"""From logits (m, V) and ids (m,) to C numbers per token, (m, C)."""

_post_processed: WeakSet[nn.Module] = WeakSet()
"""Models that do more to their logits than the head does, such as Gemma 2, which bounds them."""


def at_tokens(
    model: nn.Module, read: Read, input_ids: Tensor, attention_mask: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """What `read` finds at the tokens that count.

    Rows go through the model without their padding where they can be packed. The head runs inside the model's own
    forward, as sharding and adapters expect it to. A model whose forward then changes the logits is detected, and
    read from its whole logits.

    Args:
        model: a causal language model.
        read: called with the logits and ids of some of the tokens.
        input_ids: (B, T) int64, padded on either side.
        attention_mask: (B, T) bool.
        ids: (B, K) int64: `ids[:, k]` is what the logits at the k-th of the last K positions predict.
        mask: (B, K), True where a token is read.

    Returns:
        (B, K, C), zero where the mask is False.
    """
    # As numbers and not as a mask, which a device would be waited for again and again to count.
    at = mask.flatten().nonzero()[:, 0]
    ids = ids.flatten()[at]
    width = mask.shape[1]
    unread = input_ids.shape[1] - width
    packed = pays(model, attention_mask)
    if not packed and not keeps_states(model):
        inputs = _inputs(model, input_ids, attention_mask)
        if unread:
            inputs["logits_to_keep"] = width
        with only_at(model, at + (at // width + 1) * unread, input_ids.numel()):
            return _found(model, read, ids, at, inputs)
    wide = F.pad(mask, (unread, 0))
    if packed:
        # tokens that are read in the order of the rows, among all tokens in that order
        places, inputs = wide[attention_mask].nonzero()[:, 0], Packed.of(input_ids, attention_mask).inputs
    else:
        # A state takes up what comes before, padding too. What comes behind changes no token of a causal model.
        order = (~attention_mask).byte().argsort(dim=1, stable=True)
        input_ids, attention_mask, wide = (x.gather(1, order) for x in (input_ids, attention_mask, wide))
        places, inputs = wide.flatten().nonzero()[:, 0], _inputs(model, input_ids, attention_mask)
    with only_at(model, places, inputs["input_ids"].numel()):
        found = _found(model, read, ids, places, inputs)
    return _spread(found.flatten(0, 1)[places], at, mask.shape)


def _inputs(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """The arguments of a model's forward for rows with padding."""
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask.long(), "use_cache": False}
    if takes_positions(model):
        inputs["position_ids"] = position_ids(attention_mask)
    return inputs


def _found(model: nn.Module, read: Read, ids: Tensor, at: Tensor, inputs: dict[str, Any]) -> Tensor:
    """What `read` finds for ids (M,) at (M,) of the logits' positions, row after row; zero elsewhere, (B, K, C).

    It is the model's own output where it can be: sharded weights are gathered for the backward pass when the gradient
    comes to that.
    """
    find = getattr(unwrapped(model), "get_output_embeddings", None)
    head = find() if find is not None else None
    if head is not None and model not in _post_processed:
        found: list[Tensor] = []

        def scores(hidden: Tensor) -> Tensor:
            more = lacking(len(at), hidden.device)
            states, wanted = hidden.flatten(0, 1)[F.pad(at, (0, more))], F.pad(ids, (0, more))
            again = not torch.is_grad_enabled() or computes_again(model)
            rows = rows_at_once(len(wanted), head.weight.shape[0], gpu=hidden.is_cuda, again=again)
            read_there = _pieces(head_forward, states, wanted, read, rows)[: len(at)]
            found.append(_spread(read_there, at, hidden.shape[:2]))
            return found[0]

        with _replaced(head, scores) as head_forward:
            returned = model(**inputs).logits
        if len(found) == 1 and (returned is found[0] or torch.equal(returned, found[0].to(returned.dtype))):
            return found[0]
        _post_processed.add(model)
    logits = model(**inputs).logits
    return _spread(read(logits.flatten(0, 1)[at], ids), at, logits.shape[:2])


def rows_at_once(count: int, vocabulary: int, *, gpu: bool, again: bool) -> int:
    """Positions that the head computes at once, of `count`.

    Args:
        count: how many there are.
        vocabulary: rows of the head.
        gpu: whether it runs on one.
        again: whether nothing is to be kept: activations are computed again, or there is no backward pass.
    """
    if not gpu:
        return max(1, HEAD_ELEMENTS // vocabulary)
    if not again and count * vocabulary <= GPU_HEAD_KEPT:
        return count
    return max(1, GPU_HEAD_ELEMENTS // vocabulary // _TILE_ROWS * _TILE_ROWS)


def target_scores(model: nn.Module, batch: TokenBatch, read: Read) -> Tensor:
    """What `read` finds at a batch's targets, (B, T - 1, C): column t belongs to token t + 1, as in
    `ops.log_probs.next_token_log_probs`."""
    targets = F.pad(batch.loss_mask[:, 1:], (0, 1))
    ids = batch.input_ids.roll(-1, dims=1)
    return at_tokens(model, read, batch.input_ids, batch.attention_mask, ids, targets)[:, :-1]


def target_log_probs(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Log-probs (B, T - 1) float32 of a batch's targets in nats, zero where the next token is none."""
    return target_scores(model, batch, lambda logits, ids: token_log_probs(logits, ids)[:, None])[..., 0]


def _pieces(head: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor, read: Read, rows: int) -> Tensor:
    """`read` over hidden states (M, d) and ids (M,), `rows` at a time."""
    if len(ids) <= rows:
        return read(head(hidden), ids)

    def piece(hidden: Tensor, ids: Tensor) -> Tensor:
        return read(head(hidden), ids)

    again = torch.is_grad_enabled()
    parts = [
        checkpoint(piece, h, i, use_reentrant=False) if again else piece(h, i)
        for h, i in zip(hidden.split(rows), ids.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _spread(found: Tensor, at: Tensor, shape: torch.Size) -> Tensor:
    """(M, C) to the positions `at` (M,) of a `shape` (B, K), row after row: (B, K, C)."""
    spread = found.new_zeros(*shape, found.shape[-1])
    spread.flatten(0, 1)[at] = found  # and not a view of it returned: the hooks of shards want a tensor of its own
    return spread


@contextmanager
def _replaced(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """`head` computes `forward` inside the block; yields what it computed before."""
    before = vars(head).get("forward")
    own = head.forward
    head.forward = forward
    try:
        yield own
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before

"""The last block of a model, computed at the tokens whose result is read.

Behind the last block no token sees another. Its keys and values are needed of every token; queries, what becomes of
attention's result, and the MLP only where a log-prob or a value is read: of a demonstration the completion, of a
comparison one token per branch. The numbers and gradients there are those of the whole block. Elsewhere its output is
meaningless.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from instructlit.models.adapters import unwrapped
from instructlit.models.blocks import computes_again, find_blocks
from instructlit.models.packed import lacking

_LLAMA = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
TOKEN_BY_TOKEN = {
    "LlamaDecoderLayer": _LLAMA,
    "MistralDecoderLayer": _LLAMA,
    "Qwen2DecoderLayer": _LLAMA,
    "Qwen3DecoderLayer": _LLAMA,
    "GPT2Block": ("mlp",),
    "GPTNeoXLayer": ("mlp",),
}
"""By the class of a block, its modules that work on each token for itself and whose result no other token reads."""

WORTH_LEAVING = 0.1
"""Tokens left out over all, from which leaving them out pays: taking some and putting results back costs as much as
what a few take."""

_last_blocks: WeakKeyDictionary[nn.Module, ref[nn.Module] | None] = WeakKeyDictionary()
"""Of models met before, for every forward asks. A block may hold on to its model, by the hooks of shards."""


@contextmanager
def only_at(model: nn.Module, places: Tensor, tokens: int) -> Iterator[None]:
    """Inside the `with`, the output of a forward of `model` is valid only at these places.

    Where activations are computed again in the backward pass, which is outside, and where blocks are compiled, all
    tokens are computed as usual, as they are in blocks of other classes than `TOKEN_BY_TOKEN` names.

    Args:
        model: plain or with adapters.
        places: (M,) int64, each once, of the tokens of the forward, row after row.
        tokens: so many these are.
    """
    with ExitStack() as stack:
        if tokens - len(places) > WORTH_LEAVING * tokens:
            some = _with_more(places, tokens)
            for module in _token_by_token(model):
                stack.enter_context(_taking(module, some))
        yield


def _token_by_token(model: nn.Module) -> list[nn.Module]:
    """The modules of the last block that need not see every token."""
    block = _last_block(model)
    if block is None or block._compiled_call_impl is not None or computes_again(model):
        return []
    return [block.get_submodule(name) for name in TOKEN_BY_TOKEN.get(type(block).__name__, ())]


def _last_block(model: nn.Module) -> nn.Module | None:
    if model not in _last_blocks:
        blocks = find_blocks(unwrapped(model))
        _last_blocks[model] = ref(blocks[-1]) if blocks else None
    found = _last_blocks[model]
    return found() if found is not None else None


def _with_more(places: Tensor, tokens: int) -> Tensor:
    """The places, and as many others behind them as let shapes come again: each once, for a gradient belongs to it."""
    count = max(1, len(places))
    count = min(tokens, count + lacking(count, places.device))
    others = torch.ones(tokens, dtype=torch.bool, device=places.device)
    others[places] = False
    return others.byte().argsort(stable=True)[:count]


@contextmanager
def _taking(module: nn.Module, places: Tensor) -> Iterator[None]:
    """`module` computes at these places of (B, T, d) alone, and has zeros elsewhere."""
    shape: list[torch.Size] = []

    def take(_module: nn.Module, args: tuple[Tensor]) -> Tensor:
        (hidden,) = args
        shape.append(hidden.shape[:2])
        return hidden.flatten(0, 1).index_select(0, places)[None]

    def put_back(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        rows, columns = shape.pop()
        found = output[0]
        return found.new_zeros(rows * columns, found.shape[1]).index_copy(0, places, found).view(rows, columns, -1)

    before = module.register_forward_pre_hook(take)
    after = module.register_forward_hook(put_back)
    try:
        yield
    finally:
        before.remove()
        after.remove()

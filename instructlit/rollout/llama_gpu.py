"""Llama's layers on a GPU: a step of a few large products with fused kernels between them, which can be recorded."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import repeat_kv

from instructlit.rollout import kernels
from instructlit.rollout.decoders import LlamaDecoder
from instructlit.rollout.llama import Norm

_SILU = (nn.SiLU, type(ACT2FN["silu"]))


class GPULlamaDecoder(LlamaDecoder):
    """As `LlamaDecoder`, with a cache of the full length from the start: what a step touches stays where it is.

    A slot's query reads the keys that the slot has, so that neither a row that has ended nor a short one beside a long
    one costs anything.

    Args:
        model: a causal language model of `LLAMAS`, with or without adapters.
        slots: rows at once.
        length: most tokens of a row.
    """

    replays = True
    tokens_at_once = 1 << 14
    pads = True

    def __init__(self, model: nn.Module, slots: int, length: int):
        super().__init__(model, slots, length)
        self._grow(length)
        self._cosines, self._sines = self._cos[:, 0].contiguous(), self._sin[:, 0].contiguous()
        self._norms = [
            (torch.stack([norm.weight for norm in norms]), norms[0].epsilon) if (norms := layer.head_norms) else None
            for layer in self._layers
        ]

    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        places = self._filled.clamp_max(self._length - 1)  # those of slots that are not live may be full
        before = places * live
        self._filled.copy_(torch.where(live, places + 1, self._filled))
        with torch.autocast(tokens.device.type, enabled=False):
            x = F.embedding(tokens, self._embedding).float()
            more = None
            for layer, cache, norms in zip(self._layers, self._caches, self._norms, strict=True):
                qkv = layer.qkv(self._added(x, more, layer.before_attention))
                found = kernels.attend(
                    qkv, self._cosines, self._sines, places, before, cache.keys, cache.values, norms, self._scale
                )
                gate_up = layer.gate_up(self._added(x, layer.out(found), layer.before_mlp))
                more = layer.down(self._gated(layer.activation, gate_up))
            return self._head(self._added(x, more, self._norm))

    def _added(self, x: Tensor, more: Tensor | None, norm: Norm) -> Tensor:
        return kernels.add_and_norm(x, more, norm.weight, norm.epsilon, self.dtype)

    def _gated(self, activation: nn.Module, gate_up: Tensor) -> Tensor:
        if isinstance(activation, _SILU):
            return kernels.gated(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return activation(gate) * up

    def _among_prompts(self, lengths: list[int]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """One attention for all prompts, with padding behind the shorter ones, which no token before it sees."""
        device, longest = self._filled.device, max(lengths)
        columns = torch.arange(longest, device=device)
        inside = columns < torch.tensor(lengths, device=device)[:, None]
        place, groups = inside.flatten().nonzero()[:, 0], self._heads // self._kv_heads

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            def padded(x: Tensor) -> Tensor:
                rows = x.new_zeros(inside.numel(), *x.shape[1:]).index_copy(0, place, x)
                return rows.unflatten(0, inside.shape).transpose(1, 2)

            q, k, v = padded(query), repeat_kv(padded(key), groups), repeat_kv(padded(value), groups)
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._scale)
            return found.transpose(1, 2).flatten(0, 1).index_select(0, place)

        return attend

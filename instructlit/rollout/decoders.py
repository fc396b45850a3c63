"""What decodes one token for every row: a model with its keys and values of some rows, each in a slot.

`LlamaDecoder` computes the layers of Llama's family itself, with a cache allocated beforehand, from the model's current
weights; if the forward runs in 16 bits by autocast they are cast once per rollout and not once per token.
`llama_gpu.GPULlamaDecoder` is the same for a GPU. `ModelDecoder` calls the model's own forward and serves every other
architecture whose cache can be trusted. `WholeDecoder` has none and reads every row again for every token.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import repeat_kv

from instructlit.models.adapters import adapts_only, unwrapped
from instructlit.models.packed import cache_name, keeps_states, shows_what_it_sees
from instructlit.models.segments import ALONE, by_segments
from instructlit.models.sharding import is_sharded
from instructlit.models.token_scores import at_tokens
from instructlit.ops.gpu_kernels import kernels_run
from instructlit.ops.log_probs import token_log_probs
from instructlit.ops.masking import position_ids
from instructlit.ops.micro_batches import computed_tokens, spans
from instructlit.rollout.cache import KeyValueCache
from instructlit.rollout.llama import Layer, Linear, Norm, is_linear, rotated

LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures of Llama's layers, with or without biases and norms of queries and keys."""

COLUMNS = 64
"""Places by which the cache grows: a step then reads whole tensors, of a shape that its kernels have met before."""

CACHE_MISSES = {torch.float32: 1e-4}
"""Mean difference, in nats per token, above which log-probs by a model's cache do not count as the model's own."""

CACHE_MISSES_IN_HALVES = 0.1
"""The same in 16 bits, whose rounding alone makes a few hundredths."""

_agreed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Of models that keep states: whether their cache gives the same results."""


class Decoder(ABC):
    """Rows in slots; every slot is decoded at every step, a free one without use."""

    refills: bool
    """Whether a prompt can take a slot while others are in the middle of their responses."""

    own: bool
    """Whether the layers are computed here. A model's own forward may keep a tensor for later, in training."""

    replays: bool = False
    """Whether a step never waits for the device and updates its tensors in place, so that it can be recorded."""

    @abstractmethod
    def read(self, slots: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Put prompts into slots; logits (n, V) of what comes next, of any float dtype.

        Args:
            slots: (n,) int64; all of them, in order, where the decoder does not refill.
            ids: (n, L) left-padded.
            mask: (n, L) bool.
        """

    @abstractmethod
    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        """Append a token (S,) to every slot; logits (S, V) of what comes next, those of slots that are not live (S,)
        being anything."""

    @abstractmethod
    def keep(self, slots: Tensor) -> None:
        """Keep only these slots (n,), as 0 .. n-1."""


def decoder_for(model: nn.Module, slots: int, length: int) -> Decoder:
    """The fastest that can decode `model`.

    Args:
        model: a causal language model, in evaluation mode.
        slots: rows at once.
        length: most tokens of a row.
    """
    if not _is_llama(model):
        return plain_decoder(model)
    if next(model.parameters()).is_cuda:
        from instructlit.rollout.llama_gpu import GPULlamaDecoder

        return GPULlamaDecoder(model, slots, length)
    return LlamaDecoder(model, slots, length)


def plain_decoder(model: nn.Module) -> Decoder:
    """A decoder that uses the model's own forward, without memory for rearranged weights."""
    return ModelDecoder(model) if _has_cache(model) else WholeDecoder(model)


class ModelDecoder(Decoder):
    """The model's own forward, with the cache that transformers makes for it."""

    refills = own = False

    def __init__(self, model: nn.Module):
        self.model, self._name = model, cache_name(model) or ""
        self._cache: Any = None
        self._mask = self._positions = torch.empty(0)

    def read(self, slots: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        different, shown, inverse = _different(ids, mask)
        once = len(different) < len(ids)
        if once:
            ids = different
        else:
            shown = mask
        out = self.model(
            input_ids=ids,
            attention_mask=shown.long(),
            position_ids=position_ids(shown),
            use_cache=True,
            logits_to_keep=1,
        )
        logits, self._cache = out.logits[:, -1], out[self._name]
        self._mask, self._positions = mask, position_ids(mask)[:, -1:]
        if once:
            self._cache.reorder_cache(inverse)
            logits = logits[inverse]
        return logits

    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        self._mask = F.pad(self._mask, (0, 1), value=True)
        self._positions = self._positions + 1
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self._mask.long(),
            position_ids=self._positions,
            use_cache=True,
            **{self._name: self._cache},
        )
        self._cache = out[self._name]
        return out.logits[:, -1]

    def keep(self, slots: Tensor) -> None:
        self._cache.reorder_cache(slots)
        self._mask, self._positions = self._mask[slots], self._positions[slots]


class WholeDecoder(Decoder):
    """A forward over the whole of every row for every token: slow, and right for any causal model."""

    refills = own = False

    def __init__(self, model: nn.Module):
        self.model = model
        self._ids = self._mask = torch.empty(0)

    def read(self, slots: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        self._ids, self._mask = ids, mask
        return self._logits()

    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        self._mask = F.pad(self._mask, (0, 1), value=True)
        return self._logits()

    def keep(self, slots: Tensor) -> None:
        self._ids, self._mask = self._ids[slots], self._mask[slots]

    def _logits(self) -> Tensor:
        last = self._mask[:, -1:]
        return at_tokens(self.model, lambda logits, _: logits, self._ids, self._mask, self._ids[:, -1:], last)[:, 0]


class LlamaDecoder(Decoder):
    """Llama's layers over a cache allocated beforehand; the residual stream and the norms run in float32.

    Args:
        model: a causal language model of `LLAMAS`, plain or under LoRA.
        slots: rows at once.
        length: most tokens of a row.
    """

    refills = own = True

    tokens_at_once = 256
    """Of prompts in one forward: enough for full speed on a CPU, and next to nothing to hold beside the cache."""

    pads = False
    """Whether attention among prompts has them padded, so that padding counts among those."""

    def __init__(self, model: nn.Module, slots: int, length: int):
        hf: Any = unwrapped(model)
        trunk, weight = hf.base_model, hf.lm_head.weight
        device = weight.device
        autocast = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        self._embedding = trunk.embed_tokens.weight
        self._layers = [Layer(layer, self.dtype) for layer in trunk.layers]
        self._norm, self._head = Norm(trunk.norm), Linear([hf.lm_head], self.dtype)
        attention = trunk.layers[0].self_attn
        self._heads, self._kv_heads, self._size = (
            attention.config.num_attention_heads,
            attention.config.num_key_value_heads,
            attention.head_dim,
        )
        self._scale = attention.scaling
        positions = torch.arange(length, device=device)
        # (length, 1, size) each, float32: rotation of a head at every position
        like = torch.empty(0, dtype=torch.float32, device=device)
        self._cos, sin = (x[0, :, None] for x in trunk.rotary_emb(like, positions[None]))
        self._sin = sin * torch.ones_like(sin[0, 0]).index_fill_(0, positions.new_tensor(range(self._size // 2)), -1)
        self._length = length
        self._caches = [KeyValueCache(slots, self._kv_heads, self._size, self.dtype, device) for _ in trunk.layers]
        self._filled = torch.zeros(slots, dtype=torch.int64, device=device)  # tokens in each slot
        self._bias = torch.zeros((slots, 0), dtype=self.dtype, device=device)  # 0 where a slot is filled, else -inf

    def read(self, slots: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        ids, mask, inverse = _different(ids, mask)
        lengths = mask.sum(dim=1)
        self._grow(int(lengths.max()))
        self._filled[slots] = lengths[inverse]
        columns = torch.arange(self._bias.shape[1], device=slots.device)
        bias = self._bias.new_zeros(len(slots), len(columns))
        self._bias[slots] = bias.masked_fill_(columns >= lengths[inverse, None], -torch.inf)
        sizes = lengths.tolist()
        logits = [
            self._read(ids[start:stop], mask[start:stop], slots, inverse - start)
            for start, stop in spans(len(ids), None, self.tokens_at_once, computed_tokens(sizes, packed=not self.pads))
        ]
        return torch.cat(logits)[inverse]

    def _read(self, ids: Tensor, mask: Tensor, slots: Tensor, row: Tensor) -> Tensor:
        """Logits (n, V) behind prompts (n, L), which follow one another without padding.

        Args:
            ids: (n, L).
            mask: (n, L) bool.
            slots: (m,) those that prompts are read for.
            row: (m,) which prompt each takes; none of these where it is below 0 or not below n.
        """
        lengths = mask.sum(dim=1)
        among = self._among_prompts(lengths.tolist())
        positions = position_ids(mask)[mask]
        here = (row >= 0) & (row < len(ids))
        slots, row = slots[here], row[here]
        # every token of a slot's prompt: the slot, its place there, and where it stands among all that are read
        of, place = mask[row].nonzero(as_tuple=True)
        token = (mask.flatten().cumsum(dim=0) - 1).view(mask.shape)[row[of], place]
        into, places = slots[of], positions[token]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self._caches[layer].write(into, places, key[token], value[token])
            return among(query, key, value)

        hidden = self._forward(ids[mask], positions, attend)
        return self._logits(hidden[lengths.cumsum(dim=0) - 1])

    def _among_prompts(self, lengths: list[int]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Attention (W, heads, size) of queries (W, heads, size) to keys and values (W, kv heads, size) of the same
        prompt, up to themselves. The prompts, of these lengths, follow one another."""
        segments, groups = [[length, ALONE] for length in lengths], self._heads // self._kv_heads

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
            k, v = repeat_kv(k, groups), repeat_kv(v, groups)
            return by_segments(q, k, v, segments, 0.0, self._scale)[0].transpose(0, 1)

        return attend

    def step(self, tokens: Tensor, live: Tensor) -> Tensor:
        # A free slot, which nobody asks about, may be full: it then overwrites its last place.
        places = self._filled.clamp_max(self._length - 1)
        self._filled = places + 1
        self._grow(int(self._filled.max()))
        slots = torch.arange(len(tokens), device=tokens.device)
        self._bias[slots, places] = 0
        bias = self._bias.repeat_interleave(self._kv_heads, dim=0)[:, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self._caches[layer].write(slots, places, key, value)
            return self._caches[layer].attend(query, bias, self._scale)

        return self._logits(self._forward(tokens, places, attend))

    def keep(self, slots: Tensor) -> None:
        for cache in self._caches:
            cache.keep(slots)
        self._filled, self._bias = self._filled[slots], self._bias[slots]

    def _grow(self, length: int) -> None:
        """Room for so many tokens in every slot."""
        more = min(-(-length // COLUMNS) * COLUMNS, self._length) - self._bias.shape[1]
        if more > 0:
            for cache in self._caches:  # one after the other, so that of one only both sizes are there
                cache.grow(more)
            self._bias = F.pad(self._bias, (0, more), value=-torch.inf)

    def _forward(self, ids: Tensor, positions: Tensor, attend: Any) -> Tensor:
        """Hidden states (W, d) float32 of tokens (W,) at their positions."""
        cos, sin = self._cos[positions], self._sin[positions]
        with torch.autocast(ids.device.type, enabled=False):
            x = F.embedding(ids, self._embedding).float()
            for i, layer in enumerate(self._layers):
                heads = layer.qkv(layer.before_attention(x)).view(len(ids), -1, self._size)
                turned, value = heads.split([self._heads + self._kv_heads, self._kv_heads], dim=1)
                if layer.head_norms is not None:
                    query, key = turned.split([self._heads, self._kv_heads], dim=1)
                    turned = torch.cat([layer.head_norms[0](query), layer.head_norms[1](key)], dim=1)
                turned = rotated(turned.float(), cos, sin).to(self.dtype)
                query, key = turned.split([self._heads, self._kv_heads], dim=1)
                x = x + layer.out(attend(i, query, key, value).reshape(len(ids), -1))
                gate, up = layer.gate_up(layer.before_mlp(x)).chunk(2, dim=-1)
                x = x + layer.down(layer.activation(gate) * up)
            return self._norm(x)

    def _logits(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self._head(hidden)


def _different(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of prompts (n, L) each once, with its mask, and where each of the n is among them: a prompt that is there several
    times is read once."""
    rows, inverse = torch.unique(torch.cat([mask.long(), ids], dim=1), dim=0, return_inverse=True)
    return rows[:, ids.shape[1] :], rows[:, : ids.shape[1]].bool(), inverse


def _has_cache(model: nn.Module) -> bool:
    """Whether a model's forward has a cache whose rows can be taken out, and which says what the model does."""
    hf: Any = unwrapped(model)
    if cache_name(model) is None:
        return False
    # MiniMax's own cache lets no rows be taken out where the last layer is one of attention.
    if not getattr(hf, "_supports_default_dynamic_cache", lambda: True)():
        return False
    if not keeps_states(model):
        return True
    if hf not in _agreed:
        _agreed[hf] = _cache_agrees(model)
    return _agreed[hf]


@torch.no_grad()
def _cache_agrees(model: nn.Module) -> bool:
    """Whether two rows, one behind padding, are decoded by the cache as the model computes them whole; if not, warns.
    Some architectures compute a step otherwise than many tokens at once, or count along the columns."""
    device = next(model.parameters()).device
    rows = unwrapped(model).config.get_text_config().vocab_size  # type: ignore[union-attr]
    ids = (torch.arange(60, device=device).view(2, 30) * 7919) % rows  # any will do, if they differ
    mask = torch.ones(2, 24, dtype=torch.bool, device=device)
    mask[0, :19] = False
    if model(input_ids=ids[:, :1], use_cache=True).get(cache_name(model)) is None:
        return False
    differences = []
    decoders = ModelDecoder(model), WholeDecoder(model)
    for t in range(24, 30):
        logits = [
            d.read(mask[:, 0].long(), ids[:, :24], mask) if t == 24 else d.step(ids[:, t - 1], mask[:, -1])
            for d in decoders
        ]
        cached, whole = (token_log_probs(x, ids[:, t]) for x in logits)
        differences.append((cached - whole).abs())
    gap = float(torch.stack(differences).mean())
    if gap <= CACHE_MISSES.get(logits[0].dtype, CACHE_MISSES_IN_HALVES):
        return True
    name = type(unwrapped(model)).__name__
    told = f"{name} is decoded without a cache, which is slow: with one, log-probs are off by {gap:.2g} nats per token"
    warnings.warn(told, stacklevel=2)
    return False


def _is_llama(model: nn.Module) -> bool:
    """Whether the decoder computes what `model` does: plain weights, with or without adapters, full attention, angles
    that do not depend on the length."""
    hf: Any = unwrapped(model)
    config = getattr(hf, "config", None)
    if getattr(config, "model_type", None) not in LLAMAS or is_sharded(model) or not shows_what_it_sees(model):
        return False
    linears = [m for name, m in hf.named_modules() if name.endswith(("_proj", "lm_head"))]
    if not adapts_only(model, linears):
        return False
    steady = hf.base_model.rotary_emb.rope_type not in ("dynamic", "longrope")
    device = hf.lm_head.weight.device
    served = device.type == "cpu" or kernels_run(device)
    return steady and served and all(is_linear(m) for m in linears)

"""Rows of different length in one row without padding: no token sees another row's, and positions restart.

The rows follow one another as segments. Attention keeps them apart, by a function that transformers' models find under
its name in their registry; all the rest of a model works on each token for itself and needs no change. On a CPU that is
`segments.by_segments`, where a segment may continue an earlier one, whose tokens it then sees: completions behind a
prompt that is there once. On a GPU one kernel takes all segments, flash attention of variable lengths, in 16 bits;
there every segment stands alone.

The layout travels where models take an attention mask: one that is four-dimensional already they hand on as it is, to
every layer, and to the second pass where activations are computed again.
"""

import inspect
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from instructlit.models.adapters import unwrapped
from instructlit.models.segments import ALONE, by_segments
from instructlit.ops.masking import position_ids

SEGMENTS = "instructlit_sdpa"
"""The name of the attention in transformers' registry: SDPA, and by segments where a layout stands for the mask."""

WORTH_PACKING = 0.05
"""Padding over all that a forward computes, from which leaving it out pays on a CPU for rows that stand alone. Measured
on two cores, forward and backward, as the next; only speed depends on them."""

SEGMENT_COST = 600_000
"""What a segment among those that continue others costs on a CPU, in tokens times the square of the model's width: as
much as computing 37 tokens of a model 128 wide or 2 of one 512 wide."""

# A mask is of booleans or floats, so that the dtype tells a layout from one, and one layout from the other.
_SEGMENTS, _BOUNDS = torch.int64, torch.int32
_HALVES = (torch.bfloat16, torch.float16)
"""What flash attention computes in."""

_LARGEST_HEAD = 256
_OWN_MASKS = ("doge",)
"""Architectures whose attention computes with the mask before it hands it on, so that no layout can stand for it."""

_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""By what the operator is told that keys may have fewer heads than queries; that of torch 2.11 need not be."""


@dataclass
class Packed:
    """Rows, or pieces of rows, one after the other."""

    input_ids: Tensor  # (1, W) int64
    position_ids: Tensor  # (1, W) int64
    layout: Tensor  # from `layout` or `bounds`

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor) -> "Packed":
        """Each row by itself.

        Args:
            input_ids: (B, T) int64, padded on either side.
            attention_mask: (B, T) bool, True on real tokens.
        """
        lengths = attention_mask.sum(dim=1)
        tokens = attention_mask.flatten().nonzero()[:, 0]
        ids, positions = input_ids.flatten()[tokens], position_ids(attention_mask).flatten()[tokens]
        return cls.of_segments(ids, positions, lengths, torch.full_like(lengths, ALONE), input_ids.shape[1])

    @classmethod
    def of_segments(cls, ids: Tensor, positions: Tensor, lengths: Tensor, parents: Tensor, longest: int) -> "Packed":
        """Segments that may continue earlier ones, which a GPU's kernel does not have.

        Args:
            ids: (W,) int64, segment after segment; tokens of none are added where `lacking` says so.
            positions: (W,) int64.
            lengths: (S,) int64.
            parents: (S,) int64, an earlier segment's index or ALONE.
            longest: no length is above it.
        """
        if more := lacking(len(ids), ids.device):
            ids, positions = F.pad(ids, (0, more)), F.pad(positions, (0, more))
            lengths, parents = F.pad(lengths, (0, 1), value=more), F.pad(parents, (0, 1), value=ALONE)
        laid = bounds(lengths, max(longest, more)) if at_once(ids.device) else layout(lengths, parents)
        return cls(ids[None], positions[None], laid)

    @property
    def inputs(self) -> dict[str, Any]:
        """The arguments of a model's forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.layout,
            "position_ids": self.position_ids,
            "use_cache": False,
        }


def lacking(count: int, device: torch.device) -> int:
    """So many rows more let the shapes of matrix products come again: a thirty-second of `count` at most.

    For every new shape in 16 bits a CPU makes a kernel and keeps it, and a GPU's library looks for one among hundreds.
    In float32 a CPU does neither.
    """
    if not at_once(device) and _computed_in(torch.float32, device) not in _HALVES:
        return 0
    return -count % (1 << max(0, count.bit_length() - 6))


def layout(lengths: Tensor, parents: Tensor) -> Tensor:
    """(S,) lengths and (S,) parents, an earlier segment's index or ALONE, as what stands for the mask: (1, 1, S, 2)."""
    return torch.stack([lengths, parents], dim=-1).to(_SEGMENTS)[None, None]


def bounds(lengths: Tensor, longest: int) -> Tensor:
    """(S,) lengths of segments that stand alone, as what stands for the mask where one kernel takes them all.

    Args:
        lengths: (S,) int64, on the device.
        longest: no length is above it.

    Returns:
        (1, longest, 1, S + 1) int32: where segments begin and the last one ends. The kernel must know on the host how
        long they are; a shape is known there, and so no layer waits for the device.
    """
    return F.pad(lengths.cumsum(dim=0), (1, 0)).to(_BOUNDS).expand(1, longest, 1, -1)


def shows_what_it_sees(model: nn.Module) -> bool:
    """Whether a model can be told which token sees which: SDPA in all layers, over all tokens, and given positions."""
    trunk: Any = unwrapped(model).base_model
    config = trunk.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    windows = getattr(config, "sliding_window", None) if layers is None else any(x != "full_attention" for x in layers)
    alibi = getattr(config, "alibi", False)  # Falcon then takes positions, and yet counts them along the mask
    sdpa = config._attn_implementation in ("sdpa", SEGMENTS)
    return sdpa and not windows and not alibi and takes_positions(model)


def at_once(device: torch.device) -> bool:
    """Whether one kernel takes all segments."""
    return device.type == "cuda"


def can_pack(model: nn.Module, device: torch.device) -> bool:
    """Whether rows on `device` are packed for `model`: where it can be told who sees whom, through the registry, and is
    on a CPU or computes in what flash attention takes.
    """
    trunk: Any = unwrapped(model).base_model
    if trunk.config.get_text_config()._attn_implementation != SEGMENTS or not shows_what_it_sees(model):
        return False
    return _has_flash(device) and _flash_takes(trunk, device) if at_once(device) else device.type == "cpu"


@lru_cache(maxsize=8)
def _has_flash(device: torch.device) -> bool:
    """Whether flash attention of variable lengths runs on a GPU and agrees with SDPA; if not, there is a warning."""
    if not torch.backends.cuda.is_flash_attention_available() or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    # An interface that torch calls a prototype: it is tried once, on two segments and keys with fewer heads.
    chance = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 48, 64, device=device, dtype=torch.float16, generator=chance) for heads in (4, 2, 2)
    )
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            found = _by_kernel(query, key, value, bounds(torch.tensor([16, 32], device=device), 32), None)
        except Exception as error:  # of many kinds
            warnings.warn(f"rows keep their padding on {device}: flash attention fails: {error}", stacklevel=2)
            return False
        parts = zip(*(x.split([16, 32], dim=2) for x in (query, repeat_kv(key, 2), repeat_kv(value, 2))), strict=True)
        expected = torch.cat([F.scaled_dot_product_attention(*part, is_causal=True) for part in parts], dim=2)
    if torch.allclose(found.transpose(1, 2), expected, rtol=1e-2, atol=1e-2):
        return True
    warnings.warn(f"rows keep their padding on {device}: flash attention of variable lengths is wrong", stacklevel=2)
    return False


def _flash_takes(trunk: nn.Module, device: torch.device) -> bool:
    """Whether precision, sizes of heads and dropout are what flash attention of variable lengths has."""
    config: Any = trunk.config.get_text_config()  # type: ignore[operator,union-attr]
    dtype = _computed_in(next(trunk.parameters()).dtype, device)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values = getattr(config, "v_head_dim", None)  # latent attention, whose queries have another size than that
    drops = trunk.training and any(getattr(config, name, 0) for name in _ATTENTION_DROPOUTS)
    return dtype in _HALVES and size % 8 == 0 and size <= _LARGEST_HEAD and values is None and not drops


def _computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of products of `dtype`, which autocast may narrow."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def pays(model: nn.Module, mask: Tensor, *, branches: int = 0) -> bool:
    """Whether rows are packed: where they can be, and the padding left out is worth more than packing costs.

    On a CPU that is laying segments together, or a segment's own calls where it continues another. With a gradient rows
    in 16 bits are always packed there: SDPA's backward pass takes two to six times as long as that of plain products.
    On a GPU it is a gather of ids and a scatter of results, less than a layer's work on a few tokens of padding, and
    rows with padding would need a mask besides, which no flash kernel takes: there any padding is worth it. To know
    whether there is any, the host waits for the device, once a forward.

    Args:
        model: the model that reads them.
        mask: bool, True on real tokens, in the form that the rows would have with padding.
        branches: so many segments they would be where some continue others; 0 where each row stands alone.
    """
    if not can_pack(model, mask.device):
        return False
    saved = mask.numel() - int(mask.sum())
    if at_once(mask.device):
        return not branches and saved > 0
    trunk: Any = unwrapped(model).base_model
    if branches:
        return saved * trunk.config.get_text_config().hidden_size ** 2 > SEGMENT_COST * branches
    halves = _computed_in(next(trunk.parameters()).dtype, mask.device) in _HALVES
    return (halves and torch.is_grad_enabled()) or saved > WORTH_PACKING * mask.numel()


def prepare(model: PreTrainedModel) -> None:
    """Let a model that was loaded with SDPA attend by segments, where its attention comes from the registry and leaves
    the mask as it is. One that chooses its keys (DeepSeek-V3.2) puts the choice into the mask of SDPA by name alone."""
    registered = model._supports_attention_backend and model.config.model_type not in _OWN_MASKS
    chooses = any("Indexer" in type(module).__name__ for module in model.modules())
    if model.config._attn_implementation == "sdpa" and registered and not chooses:
        model.set_attn_implementation(SEGMENTS)


def takes_positions(model: nn.Module) -> bool:
    """Whether positions can be given; architectures without have none (ALiBi), or count them by the mask."""
    return "position_ids" in _arguments(type(unwrapped(model).base_model))


def cache_name(model: nn.Module) -> str | None:
    """What a causal language model's forward, and its output, call the cache of keys and values: `cache` since
    transformers 5.24, `past_key_values` before; None where it takes none."""
    taken = _arguments(type(unwrapped(model)))
    return next((name for name in ("past_key_values", "cache") if name in taken), None)


def keeps_states(model: nn.Module) -> bool:
    """Whether layers hand on a state from token to token, into which padding before a row may find its way: not all of
    them go by the mask (RWKV, xLSTM and RecurrentGemma do not, DeepSeek-V4 counts blocks along the columns)."""
    return bool(getattr(unwrapped(model), "_is_stateful", False))


@lru_cache(maxsize=64)
def _arguments(kind: type[nn.Module]) -> frozenset[str]:
    """The names of what a model's forward takes."""
    return frozenset(inspect.signature(kind.forward).parameters)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a model calls in place of SDPA: query (B, H, T, D), key (B, K, T, D), value (B, K, T, E) to (B, T, H, E)."""
    if attention_mask is not None and attention_mask.dtype == _BOUNDS:
        assert not dropout, "flash attention of variable lengths has no dropout"
        return _by_kernel(query, key, value, attention_mask, scaling), None
    if attention_mask is not None and attention_mask.dtype == _SEGMENTS:
        return _by_layout(query, key, value, attention_mask, dropout, scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float | None) -> Tensor:
    """(1, W, H, D) of rows whose segments lie between `bounds`; heads of keys and values are not repeated."""
    # Rotary embeddings, and norms of queries and keys, leave them in float32 under autocast.
    dtype = _computed_in(value.dtype, value.device)
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    return _varlen(q, k, v, bounds[0, 0, 0], bounds.shape[1], scaling)[None]


def _varlen(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None) -> Tensor:
    """(W, H, D) of tokens that see those before them between two of the `ends` (S + 1,)."""
    window = (-1, 0)  # all before, none behind
    options = {"scale": scaling, "window_size": window, **_GROUPED}
    out: Any = varlen_attn(query, key, value, ends, ends, longest, longest, **options)
    return out


@torch.compiler.disable()  # lengths that differ from batch to batch would be compiled in
def _by_layout(
    query: Tensor, key: Tensor, value: Tensor, layout: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """(1, W, H, E) of rows that are segments of a layout."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    # Autocast would widen and narrow in every segment what it widens and narrows here once.
    with torch.autocast(query.device.type, enabled=False):
        out = by_segments(query.to(value.dtype), key.to(value.dtype), value, layout[0, 0].tolist(), dropout, scaling)
    return out.transpose(1, 2).contiguous()


AttentionInterface.register(SEGMENTS, _attention)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)

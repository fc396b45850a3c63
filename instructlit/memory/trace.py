"""What autograd keeps of a forward pass, counted by running the model on tensors that have shapes and no data.

The sum over all tensors that the pass saves for its backward, each storage once, weights left out: what
`torch.autograd.graph.saved_tensors_hooks` sees. For one architecture in one precision there are closed forms, such as
s b h (34 + 5 a s / h) bytes a layer (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models", arXiv 2205.05198, equation 1); running the forward counts any architecture, precision, adapter and kernel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from instructlit.models.adapters import unwrapped
from instructlit.models.packed import cache_name

TRACED_LAYERS = 13
"""Layers that are run. The others repeat them from the second on (the first also keeps what all of them read, such as
rotary tables): twelve is a multiple of the periods, 2, 4 and 6, in which kinds of layers alternate."""


@dataclass
class Saved:
    """Bytes that a forward pass keeps for its backward: in each decoder layer, and outside of them."""

    layers: list[int] = field(default_factory=list)
    outside: int = 0
    hidden: int = 0  # bytes of the states between two layers, (rows, length, width)
    widest: int = 0  # bytes of the largest tensor kept in a layer, such as the states inside the MLP

    @property
    def layer(self) -> int:
        """The largest layer's."""
        return max(self.layers, default=0)

    def extended(self, two: "Saved", rows: int) -> "Saved":
        """That of `rows` rows, from this one's of a single row and that of two: what does not grow is cast weights."""

        def line(one: int, two: int) -> int:
            return one + (rows - 1) * (two - one)

        layers = [line(a, b) for a, b in zip(self.layers, two.layers, strict=True)]
        rest = (line(a, b) for a, b in zip(self._rest(), two._rest(), strict=True))
        return Saved(layers, *rest)

    def _rest(self) -> tuple[int, int, int]:
        return self.outside, self.hidden, self.widest

    def total(self, checkpointing: bool) -> int:
        """What is there when the forward pass has ended: with activation checkpointing, each layer's input only."""
        return (len(self.layers) * self.hidden if checkpointing else sum(self.layers)) + self.outside

    def recomputed(self, checkpointing: bool) -> int:
        """What the backward pass adds: with activation checkpointing, one layer at a time computed again.

        Gradients inside the layer come on top: at most two tensors as large as its largest, those of a gated MLP.
        Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
        """
        return (self.layer if checkpointing else 0) + 2 * self.widest


def saved_bytes(model: nn.Module, rows: int, length: int, autocast: bool) -> Saved:
    """`Saved` of one forward pass of an outline over (rows, length) tokens, the language head at one position only.

    Args:
        model: from `outline`; its parameters are replaced by fake ones.
        rows: sequences together.
        length: tokens of each.
        autocast: whether the trainer computes in mixed bfloat16 precision.
    """
    found, every = Saved(), len(decoder_layers(model.train()))
    with _shortened(model) as blocks:
        counts = _counted(model, blocks, found, rows, length, autocast)
    found.layers, found.outside = _repeated(counts[:-1], every), counts[-1]
    return found


def _repeated(sizes: list[int], count: int) -> list[int]:
    """The first layers' sizes, and those of all `count`."""
    return [sizes[i] if i < len(sizes) else sizes[1 + (i - 1) % (len(sizes) - 1)] for i in range(count)]


def _counted(
    model: nn.Module, blocks: list[nn.Module], found: Saved, rows: int, length: int, autocast: bool
) -> list[int]:
    """Bytes saved in each of `blocks`, and last those outside of them."""
    counts = [0] * (len(blocks) + 1)
    at = [len(blocks)]
    with _fake(model) as ids_of:
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        seen: dict[int, Tensor] = {}  # holds them, so that no address is given twice

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in weights and storage._cdata not in seen:
                seen[storage._cdata] = x
                counts[at[0]] += storage.nbytes()
                if at[0] < len(blocks):
                    found.widest = max(found.widest, storage.nbytes())
            return x

        hooks = [h for i, block in enumerate(blocks) for h in _marks(block, i, at, len(blocks), found)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), _autocast(autocast):
            _forward(model, *ids_of(rows, length), use_cache=False)
        for hook in hooks:
            hook.remove()
    return counts


def cache_bytes(model: nn.Module, rows: int, length: int, autocast: bool) -> int:
    """Bytes of the keys and values of (rows, length) tokens, as generation keeps them."""
    every = len(decoder_layers(model))
    with _shortened(model), _fake(model) as ids_of, torch.no_grad(), _autocast(autocast):
        cache = _forward(model.eval(), *ids_of(rows, length), use_cache=True)[cache_name(model)]
        kept = [layer for layer in cache.layers if layer.keys is not None]
        sizes = [sum(x.numel() * x.element_size() for x in (layer.keys, layer.values)) for layer in kept]
    return sum(_repeated(sizes, every))


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks that activation checkpointing computes again."""
    parent, name = _layer_list(model)
    return list(getattr(parent, name))


def _layer_list(model: nn.Module) -> tuple[nn.Module, str]:
    """The longest list of modules in the trunk: its owner and its name there."""
    trunk: Any = unwrapped(model).base_model
    lists = [
        (len(child), parent, name)
        for parent in trunk.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    _, parent, name = max(lists, key=lambda found: found[0])
    return parent, name


@contextmanager
def _shortened(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Only the first layers inside the block, which are yielded."""
    parent, name = _layer_list(model)
    whole = getattr(parent, name)
    first = list(whole)[:TRACED_LAYERS]
    setattr(parent, name, nn.ModuleList(first))
    try:
        yield first
    finally:
        setattr(parent, name, whole)


def _forward(model: nn.Module, ids: Tensor, mask: Tensor, use_cache: bool) -> Any:
    hf: Any = unwrapped(model)
    positions = mask.cumsum(dim=1) - 1
    head = {"logits_to_keep": 1} if hasattr(hf, "lm_head") or hf.get_output_embeddings() is not None else {}
    part = model if head else hf.base_model
    return part(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=use_cache, **head)


def _marks(block: nn.Module, index: int, at: list[int], outside: int, found: Saved) -> Iterator[Any]:
    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        at[0] = index
        hidden = args[0] if args else kwargs["hidden_states"]
        found.hidden = hidden.numel() * hidden.element_size()

    def leave(*_: Any) -> None:
        at[0] = outside

    yield block.register_forward_pre_hook(enter, with_kwargs=True)
    yield block.register_forward_hook(leave)


def _autocast(enabled: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False)  # as Lightning


@contextmanager
def _fake(model: nn.Module) -> Iterator[Any]:
    """Parameters and buffers of `model` as fake tensors; yields what makes ids and mask of a size."""
    before = next((p.fake_mode for p in model.parameters() if isinstance(p, FakeTensor)), None)
    mode = before or FakeTensorMode()
    done: dict[int, Any] = {}
    for module in model.modules() if before is None else ():
        for store in (module._parameters, module._buffers):
            for name, x in list(store.items()):
                if x is None:
                    continue
                if id(x) not in done:
                    fake: Any = FakeTensor(mode, x.detach().to("meta"), torch.device("cpu"))
                    done[id(x)] = nn.Parameter(fake, x.requires_grad) if isinstance(x, nn.Parameter) else fake
                store[name] = done[id(x)]

    def ids_of(rows: int, length: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.long)

    with mode:
        yield ids_of

"""Outlines and traces of a run's models, each made once however many estimates need it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from instructlit.memory.outline import Weight, outline, weights
from instructlit.memory.trace import Saved, cache_bytes, decoder_layers, saved_bytes
from instructlit.models.adapters import unwrapped
from instructlit.models.backbone import Backbone


class Shapes:
    """What is needed of backbones repeatedly while settings are tried."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Any] = {}

    def model(self, backbone: Backbone, scalar: bool) -> nn.Module:
        """The outline."""
        bare = _bare(backbone)
        return self._once(("model", repr(bare), scalar), lambda: outline(bare, scalar=scalar, where="model"))

    def weights(self, backbone: Backbone, scalar: bool, frozen: bool) -> list[Weight]:
        """Its parameters."""
        return weights(self.model(backbone, scalar), backbone, frozen)

    def saved(self, backbone: Backbone, scalar: bool, rows: int, length: int, mixed: bool) -> Saved:
        """What a forward pass over (rows, length) tokens keeps: it grows by the same with every row."""
        model = self.model(backbone, scalar)

        def traced(count: int) -> Saved:
            key = ("saved", id(model), count, length, mixed)
            return self._once(key, lambda: saved_bytes(model, count, length, mixed))

        return traced(1).extended(traced(2), rows)

    def cache(self, backbone: Backbone, rows: int, length: int, mixed: bool) -> int:
        """Keys and values of (rows, length) tokens in a language model."""
        model = self.model(backbone, False)
        key = ("cache", id(model), length, mixed)
        return rows * self._once(key, lambda: cache_bytes(model, 1, length, mixed))

    def vocabulary(self, backbone: Backbone) -> int:
        """Rows of a language model's head."""
        head: Any = unwrapped(self.model(backbone, False)).get_output_embeddings()
        return int(head.weight.shape[0])

    def layers(self, backbone: Backbone) -> int:
        """Decoder layers."""
        return len(decoder_layers(self.model(backbone, False)))

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def _bare(backbone: Backbone) -> Backbone:
    """Without what changes no shape, so that it is traced once."""
    return replace(backbone, gradient_checkpointing=False, compile=False)

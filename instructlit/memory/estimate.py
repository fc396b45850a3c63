"""Bytes of each phase of a run, by what they are for, on one device.

Held throughout are weights, optimiser state and moving average; a phase adds gradients and what it computes with. The
peak is that of the largest phase. Counted are tensors: the driver's own memory (about half a gigabyte) and the gaps
that an allocator leaves come on top.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch

from instructlit.memory.decoding import decoder_copies
from instructlit.memory.optimizer import is_fused, is_paged, state_bytes
from instructlit.memory.outline import Weight
from instructlit.memory.run import Run
from instructlit.memory.shapes import Shapes
from instructlit.models.backbone import trunk_key
from instructlit.models.token_scores import rows_at_once
from instructlit.ops.log_probs import GPU_TILE_ELEMENTS, TILE_ELEMENTS

SAMPLING = 32
"""Bytes per logit that drawing a token takes: the logit, its softmax in float32 twice, the sums in float64 twice."""


@dataclass
class Phase:
    """A part of a step, and the bytes it adds to what is held."""

    name: str
    parts: dict[str, int]


@dataclass
class Estimate:
    """What a run takes, in bytes per device."""

    run: Run
    held: dict[str, int]
    phases: list[Phase] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def total(self, phase: Phase) -> int:
        """All of a phase."""
        return sum(self.held.values()) + sum(phase.parts.values())

    @property
    def largest(self) -> Phase:
        """The phase that takes the most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return self.total(self.largest)


def estimate(run: Run, shapes: Shapes | None = None) -> Estimate:
    """The memory of `run`; nothing is loaded but each model's config.json.

    Args:
        run: what is to run.
        shapes: outlines and traces made before.

    Raises:
        UserError: a model folder without config.json.
    """
    return _Account(run, shapes or Shapes()).estimate()


class _Account:
    def __init__(self, run: Run, shapes: Shapes):
        self.run, self.shapes = run, shapes
        self.weights = {role: self._weights(role) for role in run.models}
        self.notes = list(run.notes)
        self.share = run.devices if run.strategy == "sharded" else 1

    def estimate(self) -> Estimate:
        account = Estimate(self.run, self._held(), notes=self.notes)
        account.phases = self._ppo() if self.run.stage == "ppo" else self._supervised()
        return account

    # -- held throughout -------------------------------------------------------------------------------------------

    def _held(self) -> dict[str, int]:
        held: dict[str, int] = {}
        shared: set[Any] = set()
        for role, weights in self.weights.items():
            key, size = trunk_key(self.run.models[role]), 0
            for weight in weights:
                name = (key, weight.name)
                if not weight.frozen_trunk or name not in shared or self.share > 1:
                    size += weight.bytes
                if weight.frozen_trunk:
                    shared.add(name)
            held[f"{role} weights" if role != "model" else "weights"] = ceil(size / self.share)
        if self.run.strategy == "ddp" and self.run.devices > 1:
            held["buckets of DDP"] = sum(self._gradient(role) for role in self.run.trained)
        held["optimiser state"] = self._state()
        if self.run.ema:
            held["moving average"] = ceil(4 * sum(w.shape.numel() for w in self._trained("policy")) / self.share)
        return held

    def _state(self) -> int:
        shapes = [w.shape for role in self.run.trained for w in self._trained(role)]
        if is_paged(self.run.make_optimizer):
            self.notes.append("the paged optimiser's state moves to the host when the device is full: not counted")
            return 0
        try:
            return ceil(state_bytes(self.run.make_optimizer, shapes) / self.share)
        except RuntimeError as error:
            self.notes.append(f"the optimiser's state is assumed to be two float32 numbers per weight: {error}")
            return ceil(8 * sum(shape.numel() for shape in shapes) / self.share)

    # -- phases ----------------------------------------------------------------------------------------------------

    def _supervised(self) -> list[Phase]:
        scalar = self.run.stage == "reward"
        computing = self._computing("model", scalar, self.run.rows, self.run.length, 0 if scalar else self.run.length)
        return [Phase("forward and backward", computing), self._step()]

    def _ppo(self) -> list[Phase]:
        run = self.run
        policy = self._gradient("policy")
        phases = [Phase("sampling", self._sampling())]
        if "reward" in run.models:
            phases.append(Phase("scoring", self._reading("reward", run.scored)))
        phases.append(Phase("policy", self._computing("policy", False, run.rows, run.length, run.response)))
        if run.text is not None:
            rows, block = run.text
            phases.append(Phase("pretraining text", self._computing("policy", False, rows, block, block, policy)))
        phases.append(Phase("value", self._computing("value", True, run.rows, run.length, 0, policy)))
        phases.append(self._step())
        return phases

    def _computing(
        self, role: str, scalar: bool, rows: int, length: int, targets: int, gradients: int = 0
    ) -> dict[str, int]:
        """A forward and backward pass: what autograd keeps, and the larger of what the head and a layer then take.

        Earlier gradients are held throughout. This model's own are when the step has several micro-batches; in a
        single one they come as the activations go.
        """
        backbone = self.run.models[role]
        again = backbone.gradient_checkpointing
        saved = self.shapes.saved(backbone, scalar, rows, length, self.run.mixed)
        own = self._gradient(role) if self.run.cut else 0
        parts = {"gradients": max(gradients, own) if role == "policy" else gradients + own}
        parts["activations"] = saved.total(again)
        logits, layer = self._logits(role, rows * targets) if targets else 0, saved.recomputed(again)
        parts |= {"logits": logits} if logits > layer else {"backward of a layer": layer}
        return parts | self._unpacked(role) | self._gathered(role)

    def _logits(self, role: str, count: int) -> int:
        """Logits of one piece of the head and their gradient, with the tiles that are read in float32."""
        backbone, gpu = self.run.models[role], not self.run.cpu
        vocabulary, again = self.shapes.vocabulary(backbone), backbone.gradient_checkpointing
        elements = min(count, rows_at_once(count, vocabulary, gpu=gpu, again=again)) * vocabulary
        width, tile = self._width(role), GPU_TILE_ELEMENTS if gpu else TILE_ELEMENTS
        return 2 * elements * width + (1 if width == 4 else 2) * 4 * min(elements, tile)

    def _reading(self, role: str, rows: int) -> dict[str, int]:
        """A pass without gradients: one layer at a time."""
        saved = self.shapes.saved(self.run.models[role], True, rows, self.run.length, self.run.mixed)
        return {"activations": saved.layer + 2 * saved.hidden} | self._unpacked(role) | self._gathered(role)

    def _unpacked(self, role: str) -> dict[str, int]:
        """The largest packed weight, unpacked to be multiplied with."""
        if self.run.models[role].quantization != "nf4":
            return {}
        sizes = [w.shape.numel() for w in self.weights[role] if w.bytes < w.shape.numel()]
        return {"unpacked weight": 2 * max(sizes, default=0)}

    def _sampling(self) -> dict[str, int]:
        run, policy = self.run, self.run.models["policy"]
        cache = self.shapes.cache(policy, run.sampled, run.length, run.mixed)
        parts = {
            "keys and values": cache + cache // max(1, self.shapes.layers(policy)),  # a layer's is copied as it grows
            "draw of a token": SAMPLING * run.sampled * self.shapes.vocabulary(policy),
        }
        if run.sampled and (copies := decoder_copies(run, self.shapes, self.weights["policy"])):
            parts["decoder's weights"] = copies
        if self.share > 1:
            parts["gathered weights"] = sum(w.bytes for w in self.weights["policy"])  # whole, once a rollout
        return parts

    def _gathered(self, role: str) -> dict[str, int]:
        """Under sharding: the layer that computes and the next, whole, beside embeddings and head."""
        if self.share == 1:
            return {}
        by_layer: dict[str, int] = {}
        for weight in self.weights[role]:
            number = next((part for part in weight.name.split(".") if part.isdigit()), "")
            by_layer[number] = by_layer.get(number, 0) + weight.bytes
        rest = by_layer.pop("", 0)
        return {"gathered weights": rest + 2 * max(by_layer.values(), default=0)}

    def _step(self) -> Phase:
        """The optimiser's step. Those of torch take all tensors at once and, unless fused, temporaries as large."""
        parts = {"gradients": sum(self._gradient(role) for role in self.run.trained)}
        probe = self.run.make_optimizer([torch.nn.Parameter(torch.empty(1, device="meta"))])
        if type(probe).__module__.startswith("torch.optim") and not is_fused(probe):
            parts["temporaries"] = parts["gradients"]
        return Phase("optimiser step", parts)

    # -- counting --------------------------------------------------------------------------------------------------

    def _weights(self, role: str) -> list[Weight]:
        scalar = role in ("value", "reward") or self.run.stage == "reward"
        return self.shapes.weights(self.run.models[role], scalar, frozen=role in ("reference", "reward"))

    def _trained(self, role: str) -> list[Weight]:
        return [w for w in self.weights[role] if w.trained]

    def _gradient(self, role: str) -> int:
        return ceil(sum(w.bytes for w in self._trained(role)) / self.share)

    def _width(self, role: str) -> int:
        """Bytes of a number that the trunk computes with."""
        return 2 if self.run.mixed or self.run.models[role].dtype != "float32" else 4

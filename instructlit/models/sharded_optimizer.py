"""bitsandbytes' optimisers over weights that are sharded over ranks.

Their kernels know no DTensor (bitsandbytes issue 1633). A step here hands them this rank's parts, which share memory
with the DTensors. A state in 8 bits is a code per value and a scale per 256 values, counted through this rank's
part; where parts are cut between such blocks, as they are when a row holds a multiple of 256 values, every update is
bit for bit that of the whole parameter.

Source: Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from instructlit.errors import UserError
from instructlit.models.shards import cut_like, local

BLOCK = 256
"""Values that share a scale in bitsandbytes' block-wise states."""
QUANTISED = "__bnb_optimizer_quant_state__"
"""Where bitsandbytes puts the tensors of a parameter's state in a state dict."""


def over_shards(optimizer: Optimizer) -> Optimizer:
    """`optimizer` itself, made to update this rank's parts if it is bitsandbytes' and its parameters are sharded.

    Raises:
        UserError: one whose state is not a value (or two) for each weight, or whose update needs the norm of a whole
            parameter.
    """
    bitsandbytes: Any = sys.modules.get("bitsandbytes")
    cut = any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
    if bitsandbytes is None or not cut:
        return optimizer
    known = bitsandbytes.optim.optimizer
    if not isinstance(optimizer, known.Optimizer8bit):
        return optimizer
    kind: Any = type(optimizer)
    own: Any = optimizer
    if (
        kind.init_state not in (known.Optimizer1State.init_state, known.Optimizer2State.init_state)
        or own.args.max_unorm
    ):
        raise UserError(
            f"{kind.__name__} cannot update weights that are sharded over ranks",
            where="model.init_args.optimizer.class_path",
            expected="AdamW, Adam or Lion of bitsandbytes, in 8 bits or 32, paged or not, or an optimiser of torch",
            fix="use --config configs/optimizer/adamw_8bit.yaml",
        )
    optimizer.__class__ = type(kind.__name__, (_OverShards, kind), {})
    return optimizer


class _OverShards:
    """What stands before a bitsandbytes class: groups and state hold DTensors, but inside a step this rank's parts.

    In its state dict the codes are a DTensor like the parameter, and so are the scales, one for every run of values
    that no block and no row ends in. A checkpoint then fits any number of ranks.
    """

    param_groups: list[dict[str, Any]]
    state: dict[Tensor, Any]
    name2qmap: dict[str, Tensor]
    _sizes: dict[Tensor, int]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:  # before anything is exchanged: hooks inside look at the parameters
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad(), self._on_parts():
            super().step()  # type: ignore[misc]
        return loss

    @contextmanager
    def _on_parts(self) -> Iterator[None]:
        groups = [group["params"] for group in self.param_groups]
        parts = {p: _part(p) for params in groups for p in params}
        self._sizes = {part: p.numel() for p, part in parts.items()}
        for group, params in zip(self.param_groups, groups, strict=True):
            group["params"] = [parts[p] for p in params]
        self._rename(parts)
        try:
            yield
        finally:
            for group, params in zip(self.param_groups, groups, strict=True):
                group["params"] = params
            self._rename({part: p for p, part in parts.items()})

    def _rename(self, names: dict[Tensor, Tensor]) -> None:
        for old, new in names.items():
            if old is not new and old in self.state:
                self.state[new] = self.state.pop(old)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """As bitsandbytes has it, but a state is in 8 bits where the whole parameter is large enough for that."""
        config = super().get_config(gindex, pindex, group)  # type: ignore[misc]
        part = group["params"][pindex]
        small = self._sizes[part] < config["min_8bit_size"]
        return config | {"min_8bit_size": part.numel() + 1 if small else 0}

    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """As bitsandbytes has it; a rank without a row of the parameter only counts."""
        if p.numel():
            super().update_step(group, p, gindex, pindex)  # type: ignore[misc]
        else:
            self.state[p]["step"] += 1

    def state_dict(self) -> dict[str, Any]:
        """Codes, scales and 32-bit states as DTensors; the map from codes to values is always the same and left out."""
        found = super().state_dict()  # type: ignore[misc]
        params = [p for group in self.param_groups for p in group["params"]]
        found["state"] = {number: _packed(params[number], part) for number, part in found["state"].items()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """From a `state_dict` of any number of ranks.

        A block is restored exactly where all its values had one scale. Elsewhere it gets the scale of its largest
        value, and no value moves by more than half the widest step of the code times that scale.
        """
        own = {number: self._unpacked(entry) for number, entry in state_dict["state"].items()}
        super().load_state_dict(state_dict | {"state": own}, move_to_device)  # type: ignore[misc]

    def _unpacked(self, entry: dict[str, Any]) -> dict[str, Any]:
        tensors: dict[str, Tensor] = {}
        for which, name in (("1", "dynamic"), ("2", "udynamic")):
            if f"state{which}" not in entry:
                continue
            values = local(entry[f"state{which}"])
            if f"absmax{which}" in entry:
                if name not in self.name2qmap:
                    self.fill_qmap()  # type: ignore[attr-defined]
                code = self.name2qmap[name].to(values.device)
                values, scales = reblocked(values, local(entry[f"absmax{which}"]), code)
                tensors |= {f"qmap{which}": code, f"absmax{which}": scales}
            tensors[f"state{which}"] = values
        return {"step": entry["step"], QUANTISED: tensors}


def _part(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter, with its part of the gradient."""
    if not isinstance(parameter, DTensor):
        return parameter
    part = local(parameter).detach()
    part.grad = None if parameter.grad is None else local(parameter.grad)
    return part


def _packed(parameter: Tensor, entry: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state as bitsandbytes gives it, with its tensors as DTensors."""
    tensors = entry.get(QUANTISED, {})
    row = math.prod(parameter.shape[1:])
    run = math.gcd(BLOCK, row)
    packed = {name: value for name, value in entry.items() if name != QUANTISED}
    for name, value in tensors.items():
        if name.startswith("state"):
            packed[name] = cut_like(value, parameter, parameter.shape[1:])
        elif name.startswith("absmax"):
            runs = local(parameter).numel() // run
            scales = value.repeat_interleave(BLOCK // run)[:runs].reshape(-1, row // run)
            packed[name] = cut_like(scales, parameter, scales.shape[1:])
    return packed


def reblocked(codes: Tensor, scales: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and the scale of each block of 256, from codes with a scale for each run of values.

    Args:
        codes: uint8, any shape.
        scales: float32, any shape; the n-th is that of the n-th run of `codes.numel() / scales.numel()` values.
        code: (256,) float32, ascending, the value of each code at scale 1.
    """
    if not codes.numel():
        return codes, scales.flatten()
    run = codes.numel() // scales.numel()
    blocks = -(-codes.numel() // BLOCK)
    runs = torch.cat([scales.flatten(), scales.flatten()[-1:].expand(blocks * (BLOCK // run) - scales.numel())])
    runs = runs.view(blocks, BLOCK // run)
    same = (runs == runs[:, :1]).all(dim=1)
    if same.all():
        return codes, runs[:, 0].clone()
    values = torch.nn.functional.pad(code[codes.flatten().long()], (0, blocks * BLOCK - codes.numel()))
    values = values.view(blocks, BLOCK) * runs.repeat_interleave(run, dim=1)
    largest = values.abs().amax(dim=1)
    nearest = torch.bucketize(values / largest.clamp_min(torch.finfo(torch.float32).tiny)[:, None], _middles(code))
    fresh = nearest.to(torch.uint8).flatten()[: codes.numel()].view_as(codes)
    keep = same.repeat_interleave(BLOCK)[: codes.numel()].view_as(codes)
    return torch.where(keep, codes, fresh), torch.where(same, runs[:, 0], largest)


def _middles(code: Tensor) -> Tensor:
    return (code[1:] + code[:-1]) / 2

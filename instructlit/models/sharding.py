"""Which parts of a model are sharded together, in which precision they are gathered, and when they are whole.

FSDP2: each decoder block is one unit and what is left (embedding, last norm, head) another. A unit's weights are cut
along their first dimension, gathered before its forward and its backward and freed after each; gradients are summed and
cut again. Every forward and backward is therefore a collective, which all ranks enter equally often. Inside
`gathered` there are none: each rank may sample as many tokens as it likes.

Source: Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277; `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from instructlit.errors import UserError
from instructlit.models.blocks import decoder_blocks
from instructlit.models.scalar import ScalarHead

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Plan:
    """How models are sharded.

    Args:
        mesh: the ranks, one dimension.
        param_dtype: dtype in which weights are gathered and computed with; None keeps the one they are held in.
        reduce_dtype: dtype in which gradients are summed over the ranks.
        cpu_offload: keep this rank's part of weights, gradients and optimiser state in host memory.
    """

    mesh: DeviceMesh
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype = torch.float32
    cpu_offload: bool = False

    @property
    def precision(self) -> MixedPrecisionPolicy:
        """Of every unit but the scalar head, which stays in float32."""
        return MixedPrecisionPolicy(param_dtype=self.param_dtype, reduce_dtype=self.reduce_dtype)

    @property
    def offload(self) -> OffloadPolicy:
        """Where this rank's part is kept."""
        return CPUOffloadPolicy(pin_memory=self.mesh.device_type == "cuda") if self.cpu_offload else OffloadPolicy()


def shard(model: M, plan: Plan, where: str = "model") -> M:
    """`model` itself, sharded over the ranks of the plan; one that is already sharded is not changed.

    Args:
        model: a causal language model or a scalar model, plain or with adapters, the same on every rank.
        plan: how.
        where: the option that names the model, for messages.

    Raises:
        UserError: quantised layers, whose weights cannot be cut between rows, or an architecture whose blocks
            transformers does not name.
    """
    if is_sharded(model):
        return model
    if any(type(p).__name__ in ("Params4bit", "Int8Params") for p in model.parameters()):
        raise UserError(
            "quantised weights cannot be sharded over ranks",
            where=f"{where}.quantization",
            expected="a trunk in float32 or bfloat16 under this strategy",
            fix="remove `quantization`, or use configs/strategy/ddp.yaml",
        )
    blocks = decoder_blocks(model, where, "use configs/strategy/ddp.yaml")
    if plan.param_dtype is not None:
        for head in [module for module in model.modules() if isinstance(module, ScalarHead)]:
            fully_shard(head, mesh=plan.mesh, offload_policy=plan.offload)
    # The outermost unit frees its weights after a forward too (by default it would keep them for the backward):
    # after one without a backward, such as one on validation data, an update would not reach what it kept.
    for unit in (*blocks, model):
        fully_shard(
            unit, mesh=plan.mesh, reshard_after_forward=True, mp_policy=plan.precision, offload_policy=plan.offload
        )
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether `model`, or a part of it, is sharded."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def gathered(*models: nn.Module) -> Iterator[None]:
    """The models are whole inside the block, for forward passes without gradients, and no forward is a collective.

    Entering is one: every rank must. A model that is not sharded is not changed.
    """
    units = [module for model in models for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)

"""FSDP2 as a Lightning strategy: Lightning's `ModelParallelStrategy` on one dimension of ranks, with our plan.

What it adds: the mesh is all ranks of all nodes (Lightning's own default is tensor parallelism inside a node), the
plan's options stand where a user looks for them, and parameters that are kept on the host stay there.
"""

from datetime import timedelta
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh

from instructlit.models.backbone import DTYPES
from instructlit.models.sharding import Plan, is_sharded


class FSDP2Strategy(ModelParallelStrategy):
    """Weights, gradients and optimiser states cut over all ranks, block by block; checkpoints are folders of shards.

    Args:
        param_dtype: dtype in which weights are gathered and computed with; None follows `trainer.precision`, bfloat16
            for bf16-mixed and the models' own dtype otherwise.
        reduce_dtype: dtype in which gradients are summed over the ranks.
        cpu_offload: keep weights, gradients and optimiser states in host memory, and update them there.
        timeout: how long a rank waits for the others before it gives up.
    """

    def __init__(
        self,
        param_dtype: Literal["float32", "bfloat16"] | None = None,
        reduce_dtype: Literal["float32", "bfloat16"] = "float32",
        cpu_offload: bool = False,
        timeout: timedelta = timedelta(minutes=30),
    ):
        super().__init__(timeout=timeout)
        self.param_dtype, self.reduce_dtype, self.cpu_offload = param_dtype, reduce_dtype, cpu_offload

    def setup_environment(self) -> None:
        super().setup_environment()
        # Each rank keeps a part of the weights it has loaded. New ones (a scalar head, a model from its config alone)
        # must therefore be drawn alike, also where no seed was given; DDP would send the first rank's to the others.
        torch.manual_seed(self.broadcast(torch.initial_seed()))

    @cached_property
    def plan(self) -> Plan:
        """How models are cut; known once the processes have found each other."""
        name = self.param_dtype or ("bfloat16" if self.precision_plugin.precision == "bf16-mixed" else None)
        return Plan(
            mesh=init_device_mesh(self.root_device.type, (self.world_size,)),
            param_dtype=DTYPES[name] if name else None,
            reduce_dtype=DTYPES[self.reduce_dtype],
            cpu_offload=self.cpu_offload,
        )

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank reads rows of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def model_to_device(self) -> None:
        """Move what is not cut; of what is cut, `fully_shard` has put each part where the plan wants it."""
        assert self.model is not None
        for child in self.model.children():
            if not (self.cpu_offload and is_sharded(child)):
                child.to(self.root_device)

    def _get_process_group_backend(self) -> str:
        # With shards on the host the norm of the gradient is summed there, which NCCL cannot.
        if self.cpu_offload and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"
        return super()._get_process_group_backend()

"""FSDP2 as a Lightning strategy: Lightning's `ModelParallelStrategy` on one dimension of ranks, with our plan.

What it adds: the mesh is all ranks of all nodes (Lightning's own default is tensor parallelism inside a node), the
plan's options are where a user looks for them, and parameters that are kept on the host stay there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh

from instructlit.errors import UserError
from instructlit.models.architecture import DTYPES
from instructlit.models.sharding import Plan, is_sharded
from instructlit.modules.shard_reader import ShardPlanner, ShardReader

METADATA = "meta.pt"
"""Lightning's name for the file of a sharded checkpoint that holds what is not sharded."""


class FSDP2Strategy(ModelParallelStrategy):
    """Weights, gradients and optimiser states sharded over ranks, block by block; checkpoints are folders of shards.

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
        """How models are sharded; known once the processes are connected."""
        name = self.param_dtype or ("bfloat16" if self.precision_plugin.precision == "bf16-mixed" else None)
        return Plan(
            mesh=init_device_mesh(self.root_device.type, (self.world_size,)),
            param_dtype=DTYPES[name] if name else None,
            reduce_dtype=DTYPES[self.reduce_dtype],
            cpu_offload=self.cpu_offload,
        )

    # -- checkpoints: a folder with the shards of every rank, and `meta.pt` with all that is not sharded -------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        checkpoint["state_dict"] |= self._sharded_state()
        with _as_errors():
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Fill weights, optimiser states and what else is sharded, for any number of ranks; returns the rest.

        Raises:
            UserError: `checkpoint_path` is not a folder of shards.
        """
        path = checked(Path(self.broadcast(checkpoint_path)))
        assert self.model is not None
        as_data = weights_only is not False
        self._load_weights(path, as_data)
        for index, optimizer in enumerate(self.optimizers):
            state = {f"optimizer_{index}": get_optimizer_state_dict(self.model, optimizer)}
            _load(state, path, as_data=as_data)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state[f"optimizer_{index}"])
        return torch.load(path / METADATA, map_location="cpu", weights_only=weights_only)

    @contextmanager
    def weights_of(self, checkpoint_path: str | Path) -> Iterator[None]:
        """The module holds a checkpoint's weights inside the block, and its own again after it."""
        live = self._weights() | self._sharded_state()
        own = {name: tensor.clone() for name, tensor in live.items()}
        self._load_weights(checked(Path(checkpoint_path)))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in live.items():
                    tensor.copy_(own[name])

    def _load_weights(self, path: Path, as_data: bool = True) -> None:
        assert self.model is not None
        reader, _ = _reading(path, as_data)
        saved = reader.read_metadata().state_dict_metadata
        # A frozen trunk under adapters was left out; the module's own `load_state_dict` says what else may be missing.
        weights = {n: t for n, t in self._weights().items() if f"state_dict.{n}" in saved}
        _load({"state_dict": weights | self._sharded_state()}, path, as_data=as_data)
        self.model.load_state_dict(weights, strict=bool(self.lightning_module and self.lightning_module.strict_loading))

    def _weights(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model)

    def _sharded_state(self) -> dict[str, Tensor]:
        return getattr(self.lightning_module, "sharded_state", dict)()

    # -- processes and devices -------------------------------------------------------------------------------------

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank reads rows of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def model_to_device(self) -> None:
        """Move what is not sharded; of what is, `fully_shard` has put each part where the plan wants it."""
        assert self.model is not None
        for child in self.model.children():
            if not (self.cpu_offload and is_sharded(child)):
                child.to(self.root_device)

    def _get_process_group_backend(self) -> str:
        # With shards on the host the norm of the gradient is summed there, which NCCL cannot.
        if self.cpu_offload and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"
        return super()._get_process_group_backend()


@contextmanager
def _as_errors() -> Iterator[None]:
    """torch wraps each rank's error, such as a full disk, in a BaseException, which error handlers would not see."""
    try:
        yield
    except CheckpointException as wrapped:
        error, _ = next(iter(wrapped.failures.values()))
        raise error from wrapped


def _reading(path: Path, as_data: bool) -> tuple[FileSystemReader, DefaultLoadPlanner]:
    """What reads the shards, and what its values: as data, or as torch does, which runs what is pickled in them."""
    return (ShardReader(path), ShardPlanner()) if as_data else (FileSystemReader(path), DefaultLoadPlanner())


def _load(state: dict[str, Any], path: Path, no_dist: bool = False, as_data: bool = True) -> None:
    reader, planner = _reading(path, as_data)
    with _as_errors():
        load(state, storage_reader=reader, planner=planner, no_dist=no_dist)


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether `path` is the folder of a sharded checkpoint."""
    return (path / METADATA).is_file()


def assembled(path: Path, weights: bool = True) -> dict[str, Any]:
    """A sharded checkpoint as a checkpoint of an unsharded run, on the host and without optimiser states.

    No other process is needed. Without `weights` no shard is read, and `state_dict` is empty.
    """
    checkpoint = torch.load(path / METADATA, map_location="cpu", weights_only=True)
    if not weights:
        return checkpoint | {"state_dict": {}}
    saved = ShardReader(path).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in saved.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }
    _load(tensors, path, no_dist=True)
    whole = {name.removeprefix("state_dict."): value for name, value in tensors.items()}
    average = {name: whole.pop(name) for name in list(whole) if name.startswith("ema.")}
    if average:
        checkpoint["instructlit"]["ppo"]["ema"]["average"] = {
            name.removeprefix("ema."): value for name, value in average.items()
        }
    return checkpoint | {"state_dict": whole}


def checked(path: Path) -> Path:
    """`path`, which is a folder of shards.

    Raises:
        UserError: it is something else.
    """
    if not is_sharded_checkpoint(path):
        raise UserError(
            "is not a sharded checkpoint" + (" but that of an unsharded run" if path.is_file() else ""),
            where=str(path),
            expected=f"a folder with {METADATA} and the shards of every rank",
            fix="resume it under the strategy that wrote it, or start from its exported model",
        )
    return path

"""What cannot be cut over ranks is refused in words, and what is not cut is left alone."""

import errno
import io
import pickle
from pathlib import Path
from traceback import StackSummary
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from stage_helpers import ppo_module, sft_module, token_batch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from instructlit.errors import UserError
from instructlit.models.sharding import Plan, gathered, is_sharded, shard
from instructlit.models.shards import cut_like, local, on_first_rank, whole
from instructlit.modules.strategy import FSDP2Strategy, _load, assembled
from instructlit.types import ComparisonBatch

NOWHERE = Plan(mesh=None)  # type: ignore[arg-type]


class Params4bit(nn.Parameter):
    """Named as bitsandbytes names quantised weights."""


def test_quantised_weights_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.weight = Params4bit(torch.zeros(2, 2))
    with pytest.raises(UserError, match=r"policy\.quantization: quantised weights cannot be sharded over ranks"):
        shard(model, NOWHERE, "policy")


def test_a_model_that_names_no_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="policy: Linear does not say which of its layers are blocks"):
        shard(nn.Linear(2, 2), NOWHERE, "policy")


def test_what_is_not_cut_is_whole_and_local(tiny_llama_dir: Path) -> None:
    tensor, module = torch.arange(6.0).view(2, 3), nn.Linear(3, 2)
    assert (
        whole(tensor) is local(tensor) is on_first_rank(tensor) is cut_like(tensor, tensor, torch.Size([3])) is tensor
    )
    with gathered(module):
        assert module(tensor).shape == (2, 2)
    assert not is_sharded(module)
    single = sft_module(tiny_llama_dir)
    assert not single.sharded
    assert single.placed(module, "model") is module
    assert single.in_step([token_batch([("ab", "c")])])[0].loss_mask.any()


def attached(module: Any, strategy: Any) -> Any:
    """`module` as a trainer with that strategy would hold it."""
    module._trainer = SimpleNamespace(strategy=strategy)
    return module


def test_lightnings_own_strategy_is_refused_with_the_overlay_to_use(tiny_llama_dir: Path) -> None:
    module = attached(sft_module(tiny_llama_dir), ModelParallelStrategy())
    with pytest.raises(UserError, match=r"trainer\.strategy: ModelParallelStrategy does not define how") as caught:
        module.placed(nn.Linear(2, 2), "model")
    assert "configs/strategy/fsdp2.yaml" in str(caught.value)


def test_a_disk_without_room_is_an_error_that_can_be_handled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: Any) -> None:
        raise CheckpointException("write", {1: (full, StackSummary())})  # a BaseException

    monkeypatch.setattr(ModelParallelStrategy, "save_checkpoint", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        FSDP2Strategy().save_checkpoint({"state_dict": {}}, tmp_path / "state.ckpt")
    assert caught.value is full


def test_a_shard_that_was_cut_off_is_an_error_that_can_be_handled(tmp_path: Path) -> None:
    save({"state_dict": {"weight": torch.arange(100.0)}}, checkpoint_id=tmp_path, no_dist=True)
    torch.save({}, tmp_path / "meta.pt")
    assert assembled(tmp_path)["state_dict"]["weight"].sum() == 4950
    (shard,) = tmp_path.glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(Exception):  # noqa: B017 - torch has many kinds
        assembled(tmp_path)


class Code:
    """Unpickled, it writes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_code_in_the_list_of_shards_is_not_run(tmp_path: Path) -> None:
    save({"state_dict": {"weight": torch.arange(3.0)}}, checkpoint_id=tmp_path, no_dist=True)
    torch.save({}, tmp_path / "meta.pt")
    listed = tmp_path / ".metadata"
    shards = pickle.loads(listed.read_bytes())
    shards.planner_data = Code(tmp_path / "ran")
    listed.write_bytes(pickle.dumps(shards))
    with pytest.raises(pickle.UnpicklingError, match=r"it holds .*, which is not data"):
        assembled(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_shard_is_not_run_unless_it_is_asked_for(tmp_path: Path) -> None:
    state = {"optimizer_0": {"param_groups": [{"lr": 0.5, "betas": (0.9, 0.95), "foreach": None}]}}
    save(state, checkpoint_id=tmp_path, no_dist=True)
    blank: dict[str, Any] = {"optimizer_0": {"param_groups": [{"lr": 0.0, "betas": (0.0, 0.0), "foreach": True}]}}
    _load(blank, tmp_path, no_dist=True)
    assert blank == state
    code = io.BytesIO()
    torch.save(Code(tmp_path / "ran"), code)
    (tmp_path / "code.distcp").write_bytes(code.getvalue())
    listed = tmp_path / ".metadata"
    shards = pickle.loads(listed.read_bytes())
    place = shards.storage_data[MetadataIndex("optimizer_0.param_groups.0.lr")]
    place.relative_path, place.offset, place.length = "code.distcp", 0, len(code.getvalue())
    listed.write_bytes(pickle.dumps(shards))
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        _load(blank, tmp_path, no_dist=True)
    assert not (tmp_path / "ran").exists()
    _load(blank, tmp_path, no_dist=True, as_data=False)
    assert (tmp_path / "ran").exists()


def test_ppo_is_refused_under_the_older_fsdp(tiny_llama_dir: Path) -> None:
    module = attached(ppo_module(tiny_llama_dir), FSDPStrategy())
    with pytest.raises(UserError, match=r"trainer\.strategy: FSDPStrategy gathers weights in every forward"):
        module.setup("fit")


def test_a_blank_batch_has_the_shape_and_counts_nothing() -> None:
    batch = token_batch([("ab", "c"), ("d", "ef")])
    assert torch.equal(batch.blank().input_ids, batch.input_ids)
    assert batch.loss_mask.any()
    assert not batch.blank().loss_mask.any()
    ids = torch.zeros(3, 4, dtype=torch.int64)
    pairs = ComparisonBatch(ids, ids > -1, ids > -1, torch.tensor([0, 0, 0]), torch.tensor([1, 2, 2]), [None])
    assert len(pairs.blank().ranks.unique()) == 1

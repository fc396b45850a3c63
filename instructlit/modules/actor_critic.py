"""The models of reinforcement learning from human feedback: a policy and a value network, which are trained, a frozen
reference that the policy is held to, and the reward.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from instructlit.models.backbone import Backbone, load_causal_lm, load_scalar_model
from instructlit.models.dropout import disable_dropout
from instructlit.models.ema import EMA
from instructlit.models.export import export_folder
from instructlit.models.scalar import ScalarModel
from instructlit.models.sharding import is_sharded
from instructlit.models.trunk import Trunks
from instructlit.modules.base import StageModule
from instructlit.modules.nonfinite import NonFinite
from instructlit.rollout import RewardFunction, RewardModel


class ActorCritic(StageModule):
    """Base of a stage with these models: loads them, on shared trunks where possible, and places, averages and exports
    them. Subclasses define the training.

    Args:
        policy: the model to be trained, which leaves the stage.
        reward: where scores come from.
        value: what the value network starts from.
        reference: the frozen model; None takes the policy's own folder, or, where the policy is trained by LoRA, the
            policy with its adapters off.
        value_learning_rate: learning rate of the value network; the optimiser's own is the policy's.
        ema_decay: decay of the moving average of the policy; None keeps none.
        optimizer: as in `StageModule`, like the arguments below.
        lr_scheduler: the schedule.
        micro_batch_size: sequences in one forward and backward.
        gradient_clip_norm: largest gradient norm of a step, of policy and value network each.
        nonfinite: what happens at a step whose loss or gradient is NaN or infinite.
        micro_batch_tokens: most tokens in one forward and backward.
    """

    def __init__(
        self,
        policy: Backbone,
        reward: RewardFunction,
        value: Backbone,
        reference: Backbone | None,
        value_learning_rate: float,
        ema_decay: float | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        micro_batch_size: int | None,
        gradient_clip_norm: float | None,
        nonfinite: NonFinite,
        micro_batch_tokens: int | None,
    ):
        super().__init__(optimizer, lr_scheduler, micro_batch_size, gradient_clip_norm, nonfinite, micro_batch_tokens)
        self.backbone, self.value_backbone, self.reference_backbone = policy, value, reference
        self.reward, self.value_learning_rate, self.ema_decay = reward, value_learning_rate, ema_decay
        self.policy: nn.Module | None = None
        self.value: ScalarModel | None = None
        self.frozen_reference: list[nn.Module] = []  # in a list: not ours to save, move or shard as a submodule
        self.ema: EMA | None = None

    @property
    def trained_model(self) -> nn.Module:
        assert self.policy is not None
        return self.policy

    @property
    def value_model(self) -> ScalarModel:
        assert self.value is not None
        return self.value

    @property
    def reference_model(self) -> nn.Module:
        """The frozen reference; the policy itself where that is the policy with its adapters off."""
        return self.frozen_reference[0] if self.frozen_reference else self.trained_model

    @property
    def frozen_reference_backbone(self) -> Backbone | None:
        """The reference's, if it is a separate model; None if it is the policy without its adapters."""
        return self.reference_backbone or (None if self.backbone.lora else self.backbone)

    def backbones(self) -> dict[str, Backbone]:
        named = {"policy": self.backbone, "value": self.value_backbone, "reference": self.reference_backbone}
        return {f"model.init_args.{name}": backbone for name, backbone in named.items() if backbone is not None}

    def trained_backbones(self) -> dict[str, Backbone]:
        return {where: b for where, b in self.backbones().items() if b is not self.reference_backbone}

    def parents(self) -> dict[str, str]:
        found = {"policy": self.backbone.path, "value": self.value_backbone.path}
        if self.reference_backbone:
            found["reference"] = self.reference_backbone.path
        if (model := getattr(self.reward, "model", None)) and isinstance(model, Backbone):
            found["reward"] = model.path
        return found

    # -- loaded and placed -----------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        trunks = None if self.sharded else Trunks()  # a sharded parameter belongs to one model
        self.policy = load_causal_lm(self.backbone, "model.init_args.policy", trunks=trunks)
        self.value = load_scalar_model(self.value_backbone, where="model.init_args.value", trunks=trunks)
        if backbone := self.frozen_reference_backbone:
            reference = load_causal_lm(backbone, "model.init_args.reference", trunks=trunks, frozen=True)
            self.frozen_reference = [reference]
        if isinstance(self.reward, RewardModel):
            self.reward.trunks = trunks
        for where, backbone in self.backbones().items():
            if backbone.dropout:
                rank_zero_warn(f"{where}.dropout: {backbone.dropout:g} is not used, {type(self).__name__} sets it to 0")
        for name, model in zip(("policy", "value", "reference"), self._models(), strict=False):
            disable_dropout(model)  # a ratio compares two passes over the same tokens: noise would pass for learning
            self.placed(model, f"model.init_args.{name}")

    def _models(self) -> list[nn.Module]:
        return [self.trained_model, self.value_model, *self.frozen_reference]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [p for p in self.trained_model.parameters() if p.requires_grad]},
            {"params": [p for p in self.value_model.parameters() if p.requires_grad], "lr": self.value_learning_rate},
        ]

    def on_fit_start(self) -> None:
        self.place_frozen()
        if self.ema_decay is not None:
            self.ema = EMA(self.trained_model, self.ema_decay)

    def place_frozen(self) -> None:
        """Move the frozen models to the device."""
        for model in self.frozen_reference:
            if not is_sharded(model):
                model.to(self.device)
        self.reward.prepare(self.device, self.tokenizer)
        for model in self.reward.networks():
            self.placed(model, "model.init_args.reward")

    # -- what is kept and what leaves ------------------------------------------------------------------------------

    def sharded_state(self) -> dict[str, Tensor]:
        average = self.ema.state_dict()["average"] if self.ema is not None else {}
        return {f"ema.{name}": value for name, value in average.items()}

    def ema_state(self) -> dict[str, Any] | None:
        """What a checkpoint holds of the moving average, except for what `sharded_state` adds."""
        if self.ema is None:
            return None
        return self.ema.counters() if self.sharded else self.ema.state_dict()

    def export(self, path: str | Path, record: dict[str, Any], merge: bool = True) -> list[Path]:
        """The policy at `path` and, where one is kept, its moving average beside it at `path`-ema."""
        folders = super().export(path, record, merge)
        if self.ema is not None:
            average, record = Path(f"{path}-ema"), record | {"weights": "ema"}
            with self.ema.swapped():
                folders.append(export_folder(self.trained_model, self.tokenizer, average, record, merge=merge))
        return folders

    def export_folders(self, path: str | Path) -> list[Path]:
        return [Path(path), *([Path(f"{path}-ema")] if self.ema_decay is not None else [])]

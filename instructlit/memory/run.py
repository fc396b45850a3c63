"""A run as far as its memory is concerned: models, lengths, rows, optimiser, precision, devices."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from instructlit.errors import UserError
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone
from instructlit.modules import PPOModule, RewardModule, SFTModule
from instructlit.rollout import CachedEngine, ExternalEngine, RewardModel

Strategy = Literal["single", "ddp", "sharded"]


@dataclass(frozen=True)
class Run:
    """What `estimate` works from, per device.

    Args:
        stage: "sft" (pretraining too), "reward" or "ppo".
        models: the backbones by role: policy, value, reference, reward (PPO) or model.
        make_optimizer: from parameter groups to the optimiser.
        length: tokens of the longest row; in PPO prompt and response together.
        rows: sequences in one forward and backward.
        cut: whether a step has more than one micro-batch.
        precision: the trainer's, such as "bf16-mixed".
        devices: how many.
        strategy: whether each holds all weights ("ddp") or a share of them ("sharded").
        response: longest response of PPO, in tokens.
        sampled: sequences decoded together.
        scored: sequences that the reward model reads together.
        text: rows and tokens of PPO-ptx's text in one forward; None without.
        ema: whether a moving average of the policy is kept.
        per_row: sequences of one row of a batch: the completions of a prompt, where a reward model is trained.
        cpu: whether it runs on a CPU, where sampling has a decoder of its own.
        notes: what was assumed.
    """

    stage: str
    models: dict[str, Backbone]
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    length: int
    rows: int
    cut: bool = False
    precision: str = "32-true"
    devices: int = 1
    strategy: Strategy = "single"
    response: int = 0
    sampled: int = 0
    scored: int = 0
    text: tuple[int, int] | None = None
    ema: bool = False
    per_row: int = 1
    cpu: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def mixed(self) -> bool:
        """Whether the forward passes compute in bfloat16 under autocast."""
        return "bf16-mixed" in self.precision or self.precision == "bf16"

    @property
    def trained(self) -> list[str]:
        """The roles that are trained, the one that leaves the stage first."""
        return ["policy", "value"] if self.stage == "ppo" else ["model"]

    def standing_in(self, path: str) -> "Run":
        """The same run with the config of `path` for every model folder that is not there yet.

        A packed trunk is only trained under adapters: where no `lora` is set, that folder is assumed to hold them.
        """
        missing = [role for role, b in self.models.items() if not Path(b.path).expanduser().is_dir()]
        note = f"{path} stands in for {', '.join(dict.fromkeys(self.models[role].path for role in missing))}"
        packed = [role for role in missing if self.models[role].quantization and role in self.trained]
        stood = self.with_models(lambda b: replace(b, path=path), missing) if missing else self
        stood = stood.with_models(lambda b: replace(b, lora=b.lora or Lora()), packed) if packed else stood
        return replace(stood, notes=(*self.notes, note)) if missing else self

    def with_models(self, change: Callable[[Backbone], Backbone], roles: list[str] | None = None) -> "Run":
        """The same run with the backbones of `roles` (all by default) changed."""
        wanted = roles or list(self.models)
        return replace(self, models={r: change(b) if r in wanted else b for r, b in self.models.items()})


def run_of(
    module: Any,
    data: Any,
    *,
    precision: str = "32-true",
    devices: int = 1,
    strategy: Strategy = "single",
    completions: int = 4,
    cpu: bool = False,
) -> Run:
    """The run that a module and a datamodule would make; neither needs to have loaded anything.

    Args:
        module: one of the stages.
        data: its datamodule, of which batch size and lengths are read.
        precision: of the trainer.
        devices: how many.
        strategy: how they share the work.
        completions: of one prompt, where a reward model is trained: the data are not read.
        cpu: whether it runs on a CPU.

    Raises:
        UserError: a module or a datamodule of the user's own, of which these things are not known.
    """
    if not isinstance(module, SFTModule | RewardModule | PPOModule):
        raise UserError(
            f"{type(module).__name__} is a module of your own",
            where="model",
            expected="one of SFTModule, RewardModule, PPOModule, whose memory is known",
        )
    batch = _required(data, "batch_size")
    common: dict[str, Any] = {
        "make_optimizer": module.make_optimizer,
        "precision": precision,
        "devices": devices,
        "strategy": strategy,
        "cpu": cpu,
    }
    if isinstance(module, PPOModule):
        return _ppo(module, data, batch, common)
    length = _required(data, "max_length")
    rows = -(-batch // devices)
    notes: tuple[str, ...] = ()
    per = completions if isinstance(module, RewardModule) else 1
    if per > 1:
        notes = (f"{completions} completions per prompt (--completions)",)
    size = _rows(rows, module.micro_batch_size, module.micro_batch_tokens, length * per)
    return Run(
        module.stage,
        {"model": module.backbone},
        length=length,
        rows=size * per,
        cut=size < rows,
        per_row=per,
        notes=notes,
        **common,
    )


def _ppo(module: PPOModule, data: Any, batch: int, common: dict[str, Any]) -> Run:
    devices = common["devices"]
    models = {"policy": module.backbone, "value": module.value_backbone}
    if reference := module.frozen_reference_backbone:
        models["reference"] = reference
    notes: tuple[str, ...] = ()
    scored, episodes = 0, -(-batch // devices)
    if isinstance(module.reward, RewardModel):
        models["reward"] = module.reward.model
        scored = min(module.reward.batch_size or episodes, episodes)
    else:
        notes = (f"{type(module.reward).__name__} is a reward of your own and is not counted",)
    sampled = (module.engine.batch_size if isinstance(module.engine, CachedEngine) else None) or episodes
    if isinstance(module.engine, ExternalEngine):
        sampled = 0
        notes = (*notes, f"{type(module.engine).__name__} samples in a separate process, which is not counted")
    response = module.sampling.max_new_tokens
    length = _required(data, "max_prompt_length") + response
    size, tokens = module.micro_batch_size, module.micro_batch_tokens
    text, minibatch = None, -(-module.minibatch_size // devices)
    rows = _rows(minibatch, size, tokens, length)
    if getattr(data, "pretraining", None):
        block = int(data.pretraining_block_size)
        share = int(data.pretraining_per_episode) * module.minibatch_size // devices
        text = (_rows(share, size, tokens, block), block)
    return Run(
        "ppo",
        models,
        length=length,
        rows=rows,
        cut=rows < minibatch,
        response=response,
        sampled=min(sampled, episodes),
        scored=scored,
        text=text,
        ema=module.ema_decay is not None,
        notes=notes,
        **common,
    )


def _rows(rows: int, size: int | None, tokens: int | None, length: int) -> int:
    """Rows of the largest micro-batch, all as long as they may be."""
    rows = min(rows, size or rows)
    return max(1, min(rows, tokens // length)) if tokens else rows


def _required(data: Any, name: str) -> int:
    value = getattr(data, name, None)
    if not isinstance(value, int):
        raise UserError(
            f"{type(data).__name__} has no whole number `{name}`",
            where="data",
            expected="DemonstrationData, TextData, ComparisonData or PromptData, or a datamodule with that attribute",
        )
    return value

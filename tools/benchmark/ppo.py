"""PPO: rollouts of 32 episodes in minibatches of 8, Adam at 1e-5, KL weight 0.05, a response without EOS costs 1;
the value model starts from the reward model."""

from typing import Any

import torch

from instructlit.data import PromptData
from instructlit.models.adapters import Lora
from instructlit.models.backbone import Backbone
from instructlit.models.folders import adapter_config
from instructlit.modules import PPOModule
from instructlit.ops.kl_control import FixedKL
from instructlit.rollout import CachedEngine, RewardModel, Sampling, Shaping
from instructlit.types import Generation, PromptBatch, Rollout

from .training import Clock, train
from .work import Work

RATE, MINIBATCHES = 1e-5, 4


class TimedEngine(CachedEngine):
    """Keeps the seconds of each call."""

    def __init__(self, work: Work):
        super().__init__()
        self.work = work
        self.seconds: list[float] = []

    def generate(self, *args: Any, **options: Any) -> Generation:
        began = self.work.now()
        generation = super().generate(*args, **options)
        self.seconds.append(self.work.now() - began)
        return generation


class TimedPPO(PPOModule):
    """Keeps the seconds of each rollout: in total, and until its updates begin."""

    def __init__(self, work: Work, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.work = work
        self.whole: list[float] = []
        self.collected: list[float] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        began = self.work.now()
        super().training_step(batch, batch_idx)
        self.whole.append(self.work.now() - began)

    def collect(self, prompts: PromptBatch) -> Rollout:
        began = self.work.now()
        rollout = super().collect(prompts)
        self.collected.append(self.work.now() - began)
        return rollout

    def split(self, sampled: list[float]) -> dict[str, list[float]]:
        """Seconds of each rollout.

        Args:
            sampled: seconds of the sampling of each.
        """
        columns = {
            "rollout_s": self.whole,
            "sampling_s": sampled,
            "scoring_s": [a - b for a, b in zip(self.collected, sampled, strict=True)],
            "updating_s": [a - b for a, b in zip(self.whole, self.collected, strict=True)],
        }
        return {name: [round(s, 4) for s in seconds] for name, seconds in columns.items()}


def run(work: Work) -> dict[str, Any]:
    size = work.batch_size or 32
    clock = Clock(work, kl="ppo/objective/kl", loss="ppo/policy/loss")
    with work.files() as (folder, file):
        data = work.in_order(PromptData)(
            work.model, str(file), validation_fraction=0.0, batch_size=size, template="plain", duplicate_prefix=0
        )
        with file.open(encoding="utf-8") as lines:
            rows = sum(1 for line in lines if line.strip())
        episodes = rows // size * size
        policy, value, reward = backbones(work)
        engine = TimedEngine(work)
        module = TimedPPO(
            work,
            policy,
            RewardModel(reward),
            value,
            episodes=episodes,
            minibatch_size=size // MINIBATCHES,
            ppo_epochs=work.ppo_epochs,
            sampling=Sampling(work.max_new_tokens),
            shaping=Shaping(missing_eos="subtract", missing_eos_value=1.0),
            kl=FixedKL(0.05),
            ema_decay=None,
            optimizer=lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.0, fused=True),
            value_learning_rate=RATE,
            lr_scheduler=None,
            gradient_clip_norm=None,
            self_check=False,
            engine=engine,
        )
        trainer = train(work, folder, clock, module, data)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        **clock.figures(),
        "score_last": round(metrics["ppo/objective/score"], 4),
        "engine_gap": metrics["ppo/engine/gap"],
        "episodes": episodes,
        "episodes_per_s": round(episodes / clock.seconds, 2),
        **module.split(engine.seconds),
    }


def backbones(work: Work) -> tuple[Backbone, Backbone, Backbone]:
    """Policy, value and reward model; with `lora`, adapters on trunks in bfloat16, from a folder or new."""
    if work.lora is None:
        return work.backbone(work.model), work.backbone(work.scalar), work.backbone(work.scalar)
    lora = Lora(work.lora, alpha=2.0 * work.lora)
    return (
        work.backbone(work.model, "bfloat16", lora=lora),
        work.backbone(work.scalar, "bfloat16", lora=None if adapter_config(work.scalar) else lora),
        work.backbone(work.scalar, "bfloat16"),
    )

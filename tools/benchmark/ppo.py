"""PPO: rollouts of 32 episodes in minibatches of 8, Adam at 1e-5, KL weight 0.05, a response without end costs 1; the
reward model scores and is what the value model starts from."""

from typing import Any

import torch

from instructlit.data import PromptData
from instructlit.modules import PPOModule
from instructlit.ops.kl_control import FixedKL
from instructlit.rollout import RewardModel, Sampling, Shaping

from .training import Clock, train
from .work import Work

RATE, MINIBATCHES = 1e-5, 4


def run(work: Work) -> dict[str, Any]:
    size = work.batch_size or 32
    clock = Clock("ppo/objective/kl")
    with work.files() as (folder, file):
        data = work.in_order(PromptData)(
            work.model, str(file), validation_fraction=0.0, batch_size=size, template="plain", duplicate_prefix=0
        )
        with file.open(encoding="utf-8") as lines:
            rows = sum(1 for line in lines if line.strip())
        episodes = rows // size * size
        module = PPOModule(
            work.backbone(work.model),
            RewardModel(work.backbone(work.scalar)),
            work.backbone(work.scalar),
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
        )
        trainer = train(work, folder, clock, module, data)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        **clock.figures(work, "kl"),
        "loss_first": None,
        "loss_last": round(metrics["ppo/policy/loss"], 4),
        "score_last": round(metrics["ppo/objective/score"], 4),
        "engine_gap": metrics["ppo/engine/gap"],
        "episodes": episodes,
        "episodes_per_s": round(episodes / clock.seconds, 2),
    }

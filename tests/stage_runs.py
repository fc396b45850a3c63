"""A few steps of each stage on the tiny fixtures, as the command line would put them together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from instructlit.callbacks import ScoreSamples
from instructlit.data import ComparisonData, DemonstrationData, PromptData, TextData
from instructlit.models.backbone import Backbone
from instructlit.modules import PPOModule, RewardModule, SFTModule
from instructlit.rollout import Sampling, TextReward
from instructlit.types import PromptText

STAGES = ("pretrain", "sft", "reward", "ppo")


COMPARISONS: list[dict[str, Any]] = [
    {
        "prompt": f"Count to {n}: ",
        "completions": ["1", "one, two and so on", "no", "no no"][: 3 + n % 2],
        "ranks": [1, 1 + n % 3, 2, 3][: 3 + n % 2],
        "labeler": f"labeler{n % 2}",
    }
    for n in range(2, 14)
]
"""Every kind of pair there is a metric for: ties, neighbours and wider margins, the winner longer and shorter."""


class Shortness(TextReward):
    """Likes short answers."""

    def reward(self, prompt: PromptText, response: str) -> float:
        return 1.0 - len(response) / 10


@dataclass
class Files:
    """What the stages read."""

    model: Path
    demonstrations: Path
    comparisons: Path
    prompts: Path
    text: Path


def stage(
    name: str, files: Files, **paths: Path
) -> tuple[pl.LightningModule, pl.LightningDataModule, list[pl.Callback]]:
    """Module, data and the callbacks a stage needs of its own; `paths` may name another `policy` or `value` folder."""
    model, tokenizer = Backbone(str(paths.get("policy", files.model))), str(files.model)
    if name == "pretrain":
        return (
            SFTModule(model, metric_prefix="pretrain"),
            TextData(tokenizer, str(files.text), batch_size=4, block_size=32),
            [],
        )
    if name == "sft":
        score = ScoreSamples(Shortness(), str(files.prompts), Sampling(max_new_tokens=4), limit=6, batch_size=4)
        data = DemonstrationData(tokenizer, str(files.demonstrations), batch_size=4, validation_fraction=0.25)
        return SFTModule(model), data, [score]
    if name == "reward":
        data = ComparisonData(
            tokenizer,
            str(files.comparisons),
            batch_size=2,
            validation_fraction=0.5,
            demonstrations=str(files.demonstrations),
        )
        return RewardModule(model), data, []
    ppo = PPOModule(
        policy=model,
        reward=Shortness(),
        value=Backbone(str(paths.get("value", files.model))),
        episodes=16,
        minibatch_size=2,
        sampler_correction=2.0,
        sampling=Sampling(max_new_tokens=4),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    )
    data = PromptData(
        tokenizer,
        str(files.prompts),
        batch_size=4,
        validation_fraction=0.25,
        max_prompt_length=16,
        pretraining=str(files.text),
        pretraining_per_episode=1,
        pretraining_block_size=16,
        duplicate_prefix=0,
        max_dropped_fraction=1.0,
    )
    return ppo, data, []


def run_stage(
    name: str,
    files: Files,
    out: Path,
    logger: Any,
    callbacks: list[pl.Callback],
    batches: int = 3,
    paths: dict[str, Path] | None = None,
    **options: Any,
) -> tuple[pl.Trainer, pl.LightningModule]:
    """Trains `batches` batches with a validation after every second, writing under `out`; `options` are Lightning's."""
    pl.seed_everything(1, verbose=False)
    module, data, own = stage(name, files, **(paths or {}))
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[*own, *callbacks],
        default_root_dir=out,
        max_epochs=-1,
        limit_train_batches=batches,
        max_steps=batches * (2 if name == "ppo" else 1),
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"enable_progress_bar": False, **options},
    )
    trainer.fit(module, datamodule=data)
    return trainer, module

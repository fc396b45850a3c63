"""Batches made by hand and a trainer that only trains, for tests of the three stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from instructlit.models.backbone import Backbone
from instructlit.modules import PPOModule, RewardModule, SFTModule
from instructlit.rollout import Sampling, Shaping, TextReward
from instructlit.types import ComparisonBatch, Prompt, PromptBatch, TokenBatch

EOS = 2
TINY_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
}
"""Of a transformers config, for a model that is made on the spot."""


def sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    """Plain gradient descent: the change of a weight is the gradient times the learning rate."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def train_a_little(model: nn.Module) -> None:
    """Move every trainable weight; new adapters compute nothing, so that untouched they would hide every mistake."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))


class FixedBatches(pl.LightningDataModule):
    """A datamodule of batches made beforehand, the same in every epoch."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        train: list[Any],
        validation: list[Any] | None = None,
        demonstrations: list[TokenBatch] | None = None,
    ):
        super().__init__()
        self.tokenizer, self.train, self.validation, self.demonstrations = tokenizer, train, validation, demonstrations
        first = train[0]
        self.batch_size = len(first["prompts"] if isinstance(first, dict) else first)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation, batch_size=None) if self.validation else []  # type: ignore[arg-type]

    def demonstration_dataloader(self) -> list[TokenBatch] | None:
        return self.demonstrations


def trainer(root: Path, **options: Any) -> pl.Trainer:
    """On the CPU, silent, without checkpoints unless asked for."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": root,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return pl.Trainer(**(settings | options))


class Recorder(pl.Callback):
    """Every metric as it was logged, a dict a training batch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class CountVowels(TextReward):
    """A reward that reads text."""

    def reward(self, prompt: Any, response: str) -> float:
        return float(sum(response.count(vowel) for vowel in "aeiou"))


def padded(rows: list[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids with pad 0 and their mask."""
    width = max(map(len, rows))
    gap = [[0] * (width - len(row)) for row in rows]
    ids = [g + row if left else row + g for g, row in zip(gap, rows, strict=True)]
    mask = [[False] * len(g) + [True] * len(row) if left else [True] * len(row) + [False] * len(g)
            for g, row in zip(gap, rows, strict=True)]  # fmt: skip
    return torch.tensor(ids), torch.tensor(mask)


def token_batch(pairs: list[tuple[str, str]]) -> TokenBatch:
    """Demonstrations: the completion and its EOS are the targets."""
    rows = [[*map(ord, prompt + completion), EOS] for prompt, completion in pairs]
    ids, mask = padded(rows)
    start = torch.tensor([len(prompt) for prompt, _ in pairs])
    return TokenBatch(ids, mask, mask & (torch.arange(ids.shape[1]) >= start[:, None]))


def text_batch(texts: list[str]) -> TokenBatch:
    """Pretraining text: every token but the first is a target."""
    ids, mask = padded([list(map(ord, text)) for text in texts])
    return TokenBatch(ids, mask, mask & (torch.arange(ids.shape[1]) > 0))


def prompt_batch(texts: list[str]) -> PromptBatch:
    ids, mask = padded([list(map(ord, text)) for text in texts], left=True)
    return PromptBatch(ids, mask, [Prompt(text) for text in texts])


def comparison_batch(rows: list[tuple[str, list[str], list[int]]]) -> ComparisonBatch:
    """(prompt, completions, ranks) a prompt."""
    sequences = [[*map(ord, prompt + text), EOS] for prompt, texts, _ in rows for text in texts]
    ids, mask = padded(sequences)
    start = torch.tensor([len(prompt) for prompt, texts, _ in rows for _ in texts])
    index = torch.tensor([i for i, (_, texts, _) in enumerate(rows) for _ in texts])
    ranks = torch.tensor([rank for _, _, ranks in rows for rank in ranks])
    response = mask & (torch.arange(ids.shape[1]) >= start[:, None])
    return ComparisonBatch(ids, mask, response, index, ranks, ["ann"] * len(rows))


def sft_module(path: Path, **options: Any) -> SFTModule:
    settings: dict[str, Any] = {"optimizer": sgd(0.1), "lr_scheduler": None, "gradient_clip_norm": None}
    return SFTModule(Backbone(str(path)), **(settings | options))


def reward_module(path: Path, **options: Any) -> RewardModule:
    settings: dict[str, Any] = {
        "model": Backbone(str(path)),
        "optimizer": sgd(0.1),
        "lr_scheduler": None,
        "gradient_clip_norm": None,
    }
    return RewardModule(**(settings | options))


def ppo_module(path: Path, **options: Any) -> PPOModule:
    settings: dict[str, Any] = {
        "policy": Backbone(str(path)),
        "value": Backbone(str(path)),
        "reward": CountVowels(),
        "episodes": 8,
        "minibatch_size": 4,
        "sampling": Sampling(max_new_tokens=6),
        "shaping": Shaping(missing_eos="keep"),
        "optimizer": sgd(0.1),
        "value_learning_rate": 0.1,
        "lr_scheduler": None,
        "gradient_clip_norm": None,
    }
    return PPOModule(**(settings | options))


def weights(module: torch.nn.Module) -> Tensor:
    """All parameters in one float64 vector."""
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])

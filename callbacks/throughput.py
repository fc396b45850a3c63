"""How fast a run goes and how much memory it takes."""

import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
import torch

from instructlit.callbacks.common import peak_memory_gib, progress_of
from instructlit.errors import require
from instructlit.types import ComparisonBatch, TokenBatch


class Throughput(pl.Callback):
    """Logs steps, tokens and, in PPO, episodes per second, and the peak of memory, under `perf/`.

    Rates are over the last `window` batches and leave out validation and checkpoints. Tokens are those that are trained
    on, over all ranks: for SFT and reward model the batch's without padding, for PPO the sampled responses'.

    Args:
        window: batches that a rate is taken over.
    """

    def __init__(self, window: int = 20):
        require("a whole number above 0", "Throughput.", window=window)
        self.window: deque[tuple[float, int, float, int]] = deque(maxlen=window)  # seconds, steps, tokens, episodes
        self._began = 0.0
        self._steps = self._episodes = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.window.clear()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.perf_counter()
        self._steps, self._episodes = trainer.global_step, _episodes(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        episodes = _episodes(trainer, pl_module) - self._episodes
        tokens = _tokens(batch) * trainer.world_size
        if episodes:
            tokens = float(trainer.callback_metrics.get("ppo/response/length", 0.0)) * episodes
        seconds = time.perf_counter() - self._began
        self.window.append((seconds, trainer.global_step - self._steps, tokens, episodes))
        total, steps, tokens, episodes = (sum(column) for column in zip(*self.window, strict=True))
        figures = {
            "perf/steps_per_second": steps / total,
            "perf/tokens_per_second": tokens / total,
            "perf/peak_memory_gib": peak_memory_gib(pl_module.device),
        }
        if episodes:
            figures["perf/episodes_per_second"] = episodes / total
        pl_module.log_dict(figures)


def _episodes(trainer: pl.Trainer, module: pl.LightningModule) -> int:
    done, _, unit = progress_of(trainer, module)
    return done if unit == "episode" else 0


def _tokens(batch: Any) -> float:
    """Real tokens of a batch on this rank; 0 for one whose kind is not known."""
    return float(batch.attention_mask.sum()) if isinstance(batch, TokenBatch | ComparisonBatch) else 0.0

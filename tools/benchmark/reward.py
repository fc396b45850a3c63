"""The reward model: AdamW at 1e-4 falling to 0, gradients clipped at 1, 4 prompts with all their completions a step."""

from typing import Any

from instructlit.data import ComparisonData
from instructlit.models.schedules import LinearToZero
from instructlit.modules import RewardModule

from .sft import adamw
from .training import Clock, train
from .work import Work


def run(work: Work) -> dict[str, Any]:
    size = work.batch_size or 4

    class Comparisons(work.in_order(ComparisonData)):
        def demonstration_dataloader(self) -> Any:
            return None  # no demonstrations to centre the scores on

    clock = Clock(work, loss="reward/train/loss")
    with work.files() as (folder, file):
        data = Comparisons(work.scalar, str(file), validation_fraction=0.0, batch_size=size, template="plain")
        module = RewardModule(work.backbone(work.scalar), optimizer=adamw, lr_scheduler=LinearToZero)
        train(work, folder, clock, module, data)
        split = data.splits["train"]
        chosen = work.order(len(split.rows))[: clock.steps * size]
        pairs = sum(_pairs(split.dataset[int(row)].ranks) for row in chosen)
    return {
        **clock.figures(),
        "prompts_per_s": round(len(chosen) / clock.seconds, 3),
        "pairs_per_s": round(pairs / clock.seconds, 2),
    }


def _pairs(ranks: list[int]) -> int:
    """Pairs that are not ties."""
    return sum(a < b for a in ranks for b in ranks)

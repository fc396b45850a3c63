"""A reward model's scores of text, and how often it orders pairs as the labelers did."""

from collections.abc import Mapping, Sequence
from itertools import combinations, repeat
from typing import Any

import torch

from instructlit.evaluation.reward_scores import RewardScores


class Scorer(RewardScores):
    """A reward model beside the labelers whose rankings it learned from.

    Args:
        model: its folder; the shift is part of the score.
        device: where it computes.
        batch_size: sequences scored together.
        template: the template it was trained with.
    """

    def __init__(self, model: str, device: torch.device, batch_size: int = 512, template: str = "auto"):
        super().__init__(model, device, template, size=batch_size, where=model)

    def ordered(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[int]]:
        """For each comparison row the pairs it orders as the labeler did, and the pairs the labeler did not tie."""
        flat = self.scores(
            [
                (row["prompt"], text, end)
                for row in records
                for text, end in zip(row["completions"], row.get("ended") or repeat(True), strict=False)
            ]
        )
        right, pairs, start = [], [], 0
        for row in records:
            one = ordered_pairs(flat[start : start + len(row["ranks"])], row["ranks"])
            start += len(row["ranks"])
            right.append(one[0])
            pairs.append(one[1])
        return right, pairs


def ordered_pairs(scores: Sequence[float], ranks: Sequence[int]) -> tuple[float, int]:
    """Of the pairs that the labeler did not tie: those the scores order alike (equal scores half), and how many."""
    right, pairs = 0.0, 0
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] == ranks[j]:
            continue
        better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
        pairs += 1
        right += 1.0 if scores[better] > scores[worse] else 0.5 if scores[better] == scores[worse] else 0.0
    return right, pairs

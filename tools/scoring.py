"""A reward model made ready to score text, and how often it orders pairs as labelers did."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch

from instructlit.data.collate import collate_tokens
from instructlit.data.tokenization import Encoder
from instructlit.data.tokenizers import load_tokenizer
from instructlit.models.backbone import Backbone, load_scalar_model
from instructlit.models.dropout import disable_dropout
from instructlit.types import PromptText


class Scorer:
    """A frozen reward model that reads text as it read its own data.

    Args:
        model: its folder; the shift is part of the score.
        device: where it computes.
        batch_size: sequences scored together.
        template: the template it was trained with.
    """

    def __init__(self, model: str, device: torch.device, batch_size: int = 512, template: str = "auto"):
        tokenizer: Any = load_tokenizer(model)
        self.encoder, self.pad = Encoder(tokenizer, template), tokenizer.pad_token_id
        network = load_scalar_model(Backbone(model), require_head=True, where=model, frozen=True)
        disable_dropout(network)
        self.network, self.device, self.batch_size = network.eval().to(device), device, batch_size

    @torch.no_grad()
    def scores(self, rows: Sequence[tuple[PromptText, str, bool]]) -> list[float]:
        """The score of each (prompt, completion, whether it ended by itself)."""
        encoded = [self.encoder.example(prompt, text, ended) for prompt, text, ended in rows]
        found: list[float] = []
        for start in range(0, len(encoded), self.batch_size):
            batch = collate_tokens(encoded[start : start + self.batch_size], self.pad)
            ids, mask = batch.input_ids.to(self.device), batch.attention_mask.to(self.device)
            found += self.network.score(ids, mask).tolist()
        return found

    def ordered(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[int]]:
        """For each comparison row the pairs it orders as the labeler did, and the pairs the labeler did not tie."""
        flat = self.scores([(row["prompt"], text, True) for row in records for text in row["completions"]])
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

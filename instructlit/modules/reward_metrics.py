"""How well scores order pairs: accuracy by labeler, margin and length, and calibration, as one torchmetric."""

import hashlib
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from instructlit.losses import comparison_pairs, pair_calibration_sums, pair_margins
from instructlit.ops.statistics import calibration_error
from instructlit.types import ComparisonBatch


class PairMetrics(Metric):
    """Over all pairs that are not ties. A pair of equal scores counts half right.

    `compute` returns `accuracy` (share of pairs where the preferred completion scores higher), `pairs` (their number),
    `loss` (mean over pairs of -log sigmoid(difference)), `calibration_error` (expected calibration error of
    sigmoid(difference)), `length_accuracy` (that of "the longer one wins", the figure to beat),
    `accuracy_winner_longer` and `accuracy_winner_shorter`, `accuracy_margin_1` and `accuracy_margin_2_up` by
    difference of ranks, and `accuracy_labeler_NAME` for each labeler.
    """

    full_state_update = False

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        for name in ("difference", "length_difference", "margin"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        # Labelers are told apart by a number that every rank gives the same name.
        self.add_state("labeler", default=[], dist_reduce_fx="cat")
        self.names: dict[int, str] = {}

    def update(self, scores: Tensor, batch: ComparisonBatch) -> None:
        pairs = comparison_pairs(batch.prompt_index, batch.ranks)
        winner, loser = pairs.winner, pairs.loser
        lengths = batch.response_mask.sum(dim=1)
        keys = torch.tensor([self._key(name) for name in batch.labelers], device=scores.device, dtype=torch.int64)
        self.difference.append(pair_margins(scores, pairs))  # type: ignore[union-attr,operator]
        self.length_difference.append((lengths[winner] - lengths[loser]).float())  # type: ignore[union-attr,operator]
        self.margin.append((batch.ranks[loser] - batch.ranks[winner]).float())  # type: ignore[union-attr,operator]
        self.labeler.append(keys[pairs.prompt])  # type: ignore[union-attr,operator]

    def compute(self) -> dict[str, Tensor]:
        states: list[Any] = [self.difference, self.length_difference, self.margin, self.labeler]
        difference, length, margin, labeler = (dim_zero_cat(state) for state in states)
        if not len(difference):
            return {"pairs": torch.zeros(())}
        right, longer = _half_for_ties(difference), _half_for_ties(length)
        figures = {
            "accuracy": right.mean(),
            "loss": -torch.nn.functional.logsigmoid(difference).mean(),
            "calibration_error": calibration_error(pair_calibration_sums(difference)),
            "length_accuracy": longer.mean(),
            "pairs": torch.tensor(float(len(difference))),
        }
        groups = {
            "winner_longer": length > 0,
            "winner_shorter": length < 0,
            "margin_1": margin == 1,
            "margin_2_up": margin >= 2,
        } | {f"labeler_{name}": labeler == key for key, name in sorted(self.names.items(), key=lambda item: item[1])}
        return figures | {f"accuracy_{name}": right[group].mean() for name, group in groups.items() if group.any()}

    def _key(self, name: str | None) -> int:
        if name is None:
            return -1
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        self.names[key] = name
        return key


def _half_for_ties(difference: Tensor) -> Tensor:
    return (difference > 0).float() + 0.5 * (difference == 0).float()

"""Losses as sums and counts: language modelling, rankings, PPO."""

from instructlit.losses.base import LossSum
from instructlit.losses.language import language_loss, target_loss
from instructlit.losses.ppo import policy_loss, sampler_weights, value_loss
from instructlit.losses.preference import (
    Pairs,
    comparison_pairs,
    pair_accuracy,
    pair_calibration_sums,
    pair_margins,
    ranking_loss,
)

__all__ = [
    "LossSum",
    "Pairs",
    "comparison_pairs",
    "language_loss",
    "pair_accuracy",
    "pair_calibration_sums",
    "pair_margins",
    "policy_loss",
    "ranking_loss",
    "sampler_weights",
    "target_loss",
    "value_loss",
]

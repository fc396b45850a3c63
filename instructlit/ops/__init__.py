"""Maths on tensors, without models: masks, log-probabilities, KL, advantages, rewards, statistics."""

from instructlit.ops.advantages import gae
from instructlit.ops.kl import k1, k2, k3, sequence_kl
from instructlit.ops.kl_control import AdaptiveKL, FixedKL, KLController
from instructlit.ops.log_probs import next_token_log_probs, token_log_probs, token_log_probs_and_entropy
from instructlit.ops.masking import (
    Reduce,
    gather_last,
    last_index,
    last_only,
    masked_mean,
    masked_moments,
    masked_sum,
    position_ids,
    whiten,
)
from instructlit.ops.moments import RunningMoments
from instructlit.ops.rewards import MissingEOS, missing_eos, shape_rewards
from instructlit.ops.statistics import calibration_error, calibration_sums, explained_variance

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "KLController",
    "MissingEOS",
    "Reduce",
    "RunningMoments",
    "calibration_error",
    "calibration_sums",
    "explained_variance",
    "gae",
    "gather_last",
    "k1",
    "k2",
    "k3",
    "last_index",
    "last_only",
    "masked_mean",
    "masked_moments",
    "masked_sum",
    "missing_eos",
    "next_token_log_probs",
    "position_ids",
    "sequence_kl",
    "shape_rewards",
    "token_log_probs",
    "token_log_probs_and_entropy",
    "whiten",
]

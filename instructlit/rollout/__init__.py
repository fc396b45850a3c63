"""From prompts to a `Rollout`: generation engines, rewards, shaping. Nothing here learns."""

from instructlit.rollout.collect import Shaping, build_rollout, minibatch_indices
from instructlit.rollout.engine import CachedEngine, GenerationEngine, Sampling
from instructlit.rollout.reward import RewardFunction, RewardModel, TextReward, checked_scores

__all__ = [
    "CachedEngine",
    "GenerationEngine",
    "RewardFunction",
    "RewardModel",
    "Sampling",
    "Shaping",
    "TextReward",
    "build_rollout",
    "checked_scores",
    "minibatch_indices",
]

"""From prompts to a `Rollout`: generation engines, rewards, shaping. Nothing here learns."""

from instructlit.rollout.collect import Shaping, build_rollout, minibatch_indices
from instructlit.rollout.engine import CachedEngine, GenerationEngine, Sampling
from instructlit.rollout.external import ExternalEngine
from instructlit.rollout.reward import RewardFunction, RewardModel, TextReward, checked_scores
from instructlit.rollout.vllm import VLLMServer
from instructlit.rollout.worker import WorkerEngine

__all__ = [
    "CachedEngine",
    "ExternalEngine",
    "GenerationEngine",
    "RewardFunction",
    "RewardModel",
    "Sampling",
    "Shaping",
    "TextReward",
    "VLLMServer",
    "WorkerEngine",
    "build_rollout",
    "checked_scores",
    "minibatch_indices",
]

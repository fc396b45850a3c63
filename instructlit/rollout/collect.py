"""One rollout: sample, score, shape the rewards, estimate the advantages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instructlit.errors import require
from instructlit.ops.advantages import gae
from instructlit.ops.masking import Reduce, whiten
from instructlit.ops.moments import RunningMoments
from instructlit.ops.rewards import MissingEOS, missing_eos, shape_rewards
from instructlit.types import Generation, Rollout


@dataclass
class Shaping:
    """How scores become rewards, and rewards advantages.

    Args:
        missing_eos: what a response that did not end gets: `replace` its score by `missing_eos_value`, `subtract` that
            value from it, or `keep` the score.
        missing_eos_value: the score to set (replace) or to take off (subtract).
        normalize_scores: subtract the scores' running mean and divide them by their running standard deviation, once
            there is one; the moments leave out responses that did not end.
        whiten_rewards: divide the shaped rewards by their standard deviation over the rollout, mean kept.
        whiten_advantages: advantages to mean 0 and variance 1 over the response tokens of all ranks.
        gamma: discount per token; the paper has none (p. 42).
        lam: lambda of GAE.

    Raises:
        UserError: `gamma` or `lam` is not from 0 to 1, or the value is not finite, or below 0 and to be subtracted.
    """

    missing_eos: MissingEOS = "replace"
    missing_eos_value: float = -1.0
    normalize_scores: bool = False
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    gamma: float = 1.0
    lam: float = 0.95

    def __post_init__(self) -> None:
        require("a number from 0 to 1", "shaping.", gamma=self.gamma, lam=self.lam)
        scores = "a finite number, 0 or more" if self.missing_eos == "subtract" else "a finite number"
        require(scores, "shaping.", missing_eos_value=self.missing_eos_value)


def build_rollout(
    generation: Generation,
    scores: Tensor,
    ref_log_probs: Tensor,
    values: Tensor,
    shaping: Shaping,
    beta: float,
    moments: RunningMoments,
    reduce: Reduce,
    policy_log_probs: Tensor | None = None,
) -> Rollout:
    """Rewards, advantages and returns for sampled and scored responses (design section 5; GAE: arXiv 1506.02438).

    Args:
        generation: B responses with the log-probs they were sampled at.
        scores: (B,) from the reward.
        ref_log_probs: (B, R) of the reference.
        values: (B, R) of the value model.
        shaping: the rules.
        beta: weight of the KL penalty.
        moments: running moments of the scores, updated here when scores are normalised.
        reduce: sums a tensor over the ranks.
        policy_log_probs: (B, R) of the trainer's own forward over the responses; None takes those of the engine.
    """
    old = generation.log_probs if policy_log_probs is None else policy_log_probs
    mask = generation.response_mask
    ruled = scores
    if shaping.normalize_scores:
        moments.update(scores, generation.ended, reduce=reduce)
        ruled = moments.normalized(scores)
    ruled = missing_eos(ruled, generation.ended, shaping.missing_eos, shaping.missing_eos_value)
    rewards = shape_rewards(ruled, old, ref_log_probs, mask, beta)
    if shaping.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, reduce=reduce)
    advantages, returns = gae(rewards, values, mask, gamma=shaping.gamma, lam=shaping.lam)
    if shaping.whiten_advantages:
        advantages = whiten(advantages, mask, reduce=reduce)
    return Rollout(
        prompts=generation.prompts,
        texts=generation.texts,
        prompt_ids=generation.prompt_ids,
        prompt_mask=generation.prompt_mask,
        response_ids=generation.response_ids,
        response_mask=mask,
        ended=generation.ended,
        old_log_probs=old,
        sampled_log_probs=generation.log_probs,
        ref_log_probs=ref_log_probs,
        values=values,
        scores=scores,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
    )


def minibatch_indices(
    size: int, minibatch_size: int, generator: torch.Generator | None, device: torch.device
) -> list[Tensor]:
    """A fresh shuffle of `size` rows in minibatches of `minibatch_size`, each (minibatch_size,) int64."""
    order = torch.randperm(size, generator=generator, device=generator.device if generator else device)
    return list(order.to(device).split(minibatch_size))

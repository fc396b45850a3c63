"""From one score per response to a reward per token."""

from typing import Literal

import torch
from torch import Tensor

from instructlit.ops.kl import k1
from instructlit.ops.masking import check_same_shape, last_only, widen, zero_outside

MissingEOS = Literal["replace", "subtract", "keep"]


def missing_eos(scores: Tensor, ended: Tensor, rule: MissingEOS, value: float) -> Tensor:
    """Scores with the rule for responses that were cut at the length limit applied, (B,) float32.

    Args:
        scores: (B,), from the reward.
        ended: (B,) boolean, the response holds its EOS.
        rule: `replace` gives a cut response the score `value` whatever the reward said; `subtract` takes `value` off
            the reward's score; `keep` leaves it.
        value: a score for `replace`, a penalty of 0 or more for `subtract`, unused by `keep`.

    Source: `replace` with -1 is detail 5 ("EOS trick") of Huang et al. 2024 (arXiv 2403.17031); InstructGPT states no
    rule.
    """
    check_same_shape(ended, scores=scores)
    scores = widen(scores)
    if rule == "keep":
        return scores
    if rule == "replace":
        return torch.where(ended, scores, value)
    if rule == "subtract":
        if value < 0:
            raise ValueError(f"a penalty of {value} would reward responses for not ending; give it as 0 or more")
        return torch.where(ended, scores, scores - value)
    raise ValueError(f"the missing-EOS rule is replace, subtract or keep, not {rule!r}")


def shape_rewards(scores: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-beta * (old log-prob - reference log-prob) at every response token, plus the score once, at the last.

    With beta 0 each row sums to its score. A response of no tokens has no place for its score and gets 0 throughout.

    Args:
        scores: (B,), after the missing-EOS rule.
        old_log_probs: (B, T), policy at the rollout, nats.
        ref_log_probs: (B, T), frozen reference at the same temperature, nats.
        mask: (B, T), True on the response (its EOS included).
        beta: KL coefficient, reward units per nat.

    Returns:
        (B, T) float32, zero outside the mask.

    Source: InstructGPT (arXiv 2203.02155) equation 2; Ziegler et al. 2019 (arXiv 1909.08593) equation 2.
    """
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)} are not one per row of {tuple(mask.shape)}")
    check_same_shape(mask, old_log_probs=old_log_probs, ref_log_probs=ref_log_probs)
    penalty = zero_outside(-beta * k1(old_log_probs, ref_log_probs), mask)
    return penalty + torch.where(last_only(mask), widen(scores)[:, None], 0.0)

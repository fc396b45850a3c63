"""The reward model's loss over all pairs of a prompt's completions, and what is measured on those pairs."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from instructlit.losses.base import LossSum
from instructlit.ops.masking import widen
from instructlit.ops.statistics import calibration_sums


class Pairs(NamedTuple):
    """Pairs of completions of one prompt with different ranks, M of them, as indices into the N completions."""

    winner: Tensor  # (M,) int64, the completion with the lower rank
    loser: Tensor  # (M,) int64
    prompt: Tensor  # (M,) int64, the prompt both belong to


def comparison_pairs(prompt_index: Tensor, ranks: Tensor) -> Pairs:
    """All pairs of a ragged batch of comparisons; ties make none.

    Args:
        prompt_index: (N,) int64, 0 .. P-1, the prompt of each completion.
        ranks: (N,) int64, 1 is best, equal is a tie.

    Example: prompts (0, 0, 0, 1, 1) and ranks (1, 2, 2, 2, 1) give winners (0, 0, 4), losers (1, 2, 3) and prompts
    (0, 0, 1).
    """
    if prompt_index.shape != ranks.shape or ranks.dim() != 1:
        raise ValueError(
            f"prompt_index {tuple(prompt_index.shape)}, ranks {tuple(ranks.shape)}: not one per completion"
        )
    # (N, N) booleans: 64 prompts of 9 completions are 0.3 MB
    better = (prompt_index[:, None] == prompt_index) & (ranks[:, None] < ranks)
    winner, loser = better.nonzero(as_tuple=True)
    return Pairs(winner, loser, prompt_index[winner])


def pair_margins(scores: Tensor, pairs: Pairs) -> Tensor:
    """Score of the winner minus score of the loser, (M,) float32, from scores (N,)."""
    scores = widen(scores)
    return scores[pairs.winner] - scores[pairs.loser]


def ranking_loss(scores: Tensor, prompt_index: Tensor, ranks: Tensor) -> LossSum:
    """Mean of -log sigmoid(margin) over each prompt's pairs, summed over prompts, and how many prompts have a pair.

    All pairs of a prompt are one element of the batch: averaged over pairs, a prompt with 9 completions weighs as
    much as one with 4. K = 2 is the Bradley-Terry likelihood. Prompts whose completions all tie count nothing.

    Args:
        scores: (N,), one per completion, any float dtype.
        prompt_index: (N,) int64, 0 .. P-1, the prompt of each completion.
        ranks: (N,) int64, 1 is best, equal is a tie.

    Source: InstructGPT (arXiv 2203.02155) equation 1; that ties are dropped, section 3.5 and appendix A.
    """
    if scores.shape != ranks.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and ranks {tuple(ranks.shape)} must be one per completion")
    pairs = comparison_pairs(prompt_index, ranks)
    losses = -logsigmoid(pair_margins(scores, pairs))
    pairs_of = torch.bincount(pairs.prompt)
    return LossSum((losses / pairs_of[pairs.prompt]).sum(), (pairs_of > 0).sum().float())


@torch.no_grad()
def pair_accuracy(margins: Tensor) -> LossSum:
    """How many pairs (M,) the scores order as the labeler did, and the number of pairs; equal scores are half a hit."""
    return LossSum(_agreement(margins).sum(), torch.tensor(float(len(margins)), device=margins.device))


@torch.no_grad()
def pair_calibration_sums(margins: Tensor, bins: int = 10) -> Tensor:
    """(3, bins) sums for `ops.calibration_error` from margins (M,).

    The stated confidence is that of the favourite, sigmoid(|margin|), from 0.5 to 1; the outcome is whether the
    favourite was the labeler's winner.
    """
    margins = widen(margins)
    return calibration_sums(torch.sigmoid(margins.abs()), _agreement(margins), bins, low=0.5)


def _agreement(margins: Tensor) -> Tensor:
    return (widen(margins).sign() + 1) / 2

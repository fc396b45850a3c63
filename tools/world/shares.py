"""Shares with intervals where the trials come in groups: several samples of one prompt are not independent."""

from collections.abc import Sequence

import numpy as np

from instructlit.ops.statistics import wilson_interval

Z = 1.959964


def wins(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Every sample of one model against every sample of another, prompt by prompt.

    Args:
        ours: for each of P prompts the scores of one model's samples.
        theirs: the same for the other.

    Returns:
        (P,) comparisons won, ties counted half, and (P,) comparisons made.
    """
    won, made = np.zeros(len(ours)), np.zeros(len(ours))
    for row, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        difference = np.subtract.outer(np.asarray(mine, dtype=float), np.asarray(other, dtype=float))
        won[row] = (difference > 0).sum() + 0.5 * (difference == 0).sum()
        made[row] = difference.size
    return won, made


def grouped_share(
    successes: Sequence[float] | np.ndarray, trials: Sequence[float] | np.ndarray
) -> tuple[float, float, float]:
    """The pooled share of successes with its 95 % interval, the groups (prompts) taken as the independent units.

    The interval is Wilson's at the effective number of trials: as many independent trials as would give the share the
    variance that it has between groups (Kish 1965 section 8.2). With one trial a group it is Wilson's interval itself;
    where all groups agree on a share between 0 and 1, as a model against itself does with ties, it is that point.

    Args:
        successes: (P,) successes of each group, halves allowed.
        trials: (P,) trials of each group; groups without trials do not count.

    Returns:
        share, low, high; (0, 0, 1) where there are no trials.
    """
    s, t = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    s, t = s[t > 0], t[t > 0]
    groups = len(t)
    if groups == 0:
        return 0.0, 0.0, 1.0
    share = float(s.sum() / t.sum())
    variance = float(((s - share * t) ** 2).sum() / t.sum() ** 2)
    if share in (0.0, 1.0) or groups == 1:
        effective = groups
    elif variance == 0.0:
        return share, share, share
    else:
        effective = max(1, int(share * (1 - share) / variance + 1e-6))
    low, high = wilson_interval(share * effective, effective, Z)
    return share, low, high

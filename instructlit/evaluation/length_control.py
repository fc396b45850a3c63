"""Win rates for answers of equal length: how much of a preference is for more words.

A judge's preference p on each prompt is regressed, p ~ sigmoid(a + b * tanh(d / sd(d))), d being how many characters
longer the answer is than the baseline's; sigmoid(a) is the win rate at d = 0. The form follows Dubois et al. 2024
("Length-Controlled AlpacaEval", equation 1) without the term for the difficulty of a prompt, which needs many models.
"""

import math

import numpy as np

from instructlit.evaluation import intervals
from instructlit.evaluation.intervals import Figure

_STEPS = 25
_RIDGE = 1e-2  # on the slope alone: a prior of one hundredth of a prompt, for models that are always longer
_FLAT = 1e-6  # keeps the Newton step finite where every pair is won


def length_controlled(preferences: np.ndarray, longer: np.ndarray, seed: int = 0) -> Figure:
    """The win rate at equal length with its bootstrap interval by prompt; nan if all differ by the same length.

    Args:
        preferences: (P,) 1 won, 0.5 a tie, 0 lost.
        longer: (P,) characters by which our answer is longer than the baseline's.
        seed: of the resampling.
    """
    n = len(preferences)
    spread = float(longer.std())
    if not spread and longer.any():  # slope and intercept cannot be told apart
        return Figure(math.nan, 0.0, 1.0, n)
    feature = np.tanh(longer / spread) if spread > 0 else np.zeros(n)
    value = float(_win_rate(np.ones((1, n)), preferences, feature)[0])
    if n < 2:
        return Figure(value, 0.0, 1.0, n)
    if np.ptp(preferences) == 0:
        # nothing to resample: Wilson's interval of the plain share, a point if all are ties
        plain = intervals.share(preferences)
        return Figure(value, min(plain.low, value), max(plain.high, value), n)
    low, high = intervals.bootstrap(lambda counts: _win_rate(counts, preferences, feature), n, seed)
    return Figure(value, low, high, n)


def _win_rate(counts: np.ndarray, preferences: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """sigmoid(a) of the regression for each of (D, P) weightings of the prompts, by damped Newton steps."""
    a, b = np.zeros(len(counts)), np.zeros(len(counts))
    square = feature * feature
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-(a[:, None] + b[:, None] * feature)))
        gap, bend = counts * (preferences - p), counts * (p * (1 - p))
        ga, gb = gap.sum(1), gap @ feature - _RIDGE * b
        haa, hab, hbb = bend.sum(1) + _FLAT, bend @ feature, bend @ square + _RIDGE
        det = np.maximum(haa * hbb - hab * hab, 1e-12)
        step_a, step_b = (hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det
        a, b = a + np.clip(step_a, -2, 2), b + np.clip(step_b, -2, 2)
        a, b = np.clip(a, -15, 15), np.clip(b, -15, 15)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-7:
            break
    return 1 / (1 + np.exp(-a))

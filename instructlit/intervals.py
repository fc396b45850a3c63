"""Confidence intervals without any library, for code that has to start fast."""

import math

Z = 1.959964
"""The 97.5 % quantile of the standard normal distribution: 95 % lie between -Z and Z."""


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion, both ends within 0 .. 1; (0, 1) for no trials.

    Args:
        successes: number of successes, halves allowed for ties.
        n: number of trials.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return 0.0, 1.0
    share, shrink = successes / n, 1 + Z * Z / n
    centre = (share + Z * Z / (2 * n)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)

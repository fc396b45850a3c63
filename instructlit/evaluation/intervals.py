"""95 % intervals of evaluation figures, prompts taken as the independent units.

Shares have Wilson's interval (at an effective number of trials where a prompt has several), differences of shares that
of Bonett and Price. Everything else (means, ratios of sums, their differences on the same prompts) is bootstrapped by
prompt. The percentile bootstrap is too narrow for few prompts, since it divides by n where the sample variance divides
by n - 1 and takes normal quantiles where Student's are due; its quantiles are moved out for both (Hesterberg 2015,
"What Teachers Should Know About the Bootstrap", section 3.3).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from instructlit.intervals import Z, wilson_interval

DRAWS = 2000
_CELLS = 4_000_000  # numbers in one block of resamples
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval and the number of units (prompts, pairs, ...) it rests on."""

    value: float
    low: float
    high: float
    n: int

    @property
    def differs(self) -> bool:
        """Whether 0 lies outside the interval: for differences."""
        return self.n > 0 and (self.low > 0 or self.high < 0)


Values = Sequence[float] | np.ndarray


def share(successes: Values, trials: Values | None = None) -> Figure:
    """The pooled share of successes with Wilson's interval; see `grouped_share`. `trials` are 1 each if not given."""
    made = np.ones(len(successes)) if trials is None else np.asarray(trials, dtype=float)
    value, low, high = grouped_share(successes, made)
    return Figure(value, low, high, int((made > 0).sum()))


def mean(values: Values, seed: int = 0) -> Figure:
    """The mean of one value a prompt."""
    return ratio(values, np.ones(len(values)), seed=seed)


def ratio(
    numerators: Values, denominators: Values, seed: int = 0, transform: Callable[[np.ndarray], np.ndarray] | None = None
) -> Figure:
    """`transform(sum of numerators / sum of denominators)`, bootstrapped by prompt.

    Args:
        numerators: (P,), such as a text's log-loss.
        denominators: (P,), such as its number of tokens; prompts with 0 do not count.
        seed: seed of the resampling; the same values give the same interval.
        transform: increasing, such as exp for a perplexity.

    Returns:
        the figure; nan with an open interval where nothing counts.
    """
    a, b = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    a, b = a[b > 0], b[b > 0]
    shape = transform or (lambda x: x)
    if not len(a):
        return Figure(math.nan, -math.inf, math.inf, 0)
    value = float(shape(np.asarray(a.sum() / b.sum())))
    if len(a) == 1:
        return Figure(value, -math.inf, math.inf, 1)
    low, high = bootstrap(lambda counts: (counts @ a) / (counts @ b), len(a), seed)
    return Figure(value, float(shape(np.asarray(low))), float(shape(np.asarray(high))), len(a))


def paired_share_difference(ours: tuple[Values, Values], theirs: tuple[Values, Values]) -> Figure:
    """The difference of two pooled shares of successes over the same prompts.

    Among few prompts none may show an outcome that is rare, and resampling them never does. Bonett and Price 2012
    ("Adjusted Wald confidence interval for a difference of binomial proportions based on paired data") therefore add
    two prompts, one on which only ours succeeds and one on which only theirs does; the interval is normal around
    the difference with them. Here an added prompt has the mean number of trials, and the variance is that between
    prompts, so that trials of one prompt need not be independent: with one trial per prompt it is theirs, with many
    independent ones it is wider than necessary.

    Args:
        ours: (P,) successes, halves allowed, and (P,) trials.
        theirs: the same for the other model; prompts without trials on either side do not count.

    Returns:
        the figure, its interval within -1 .. 1 and never a point; nan with an open interval where nothing counts.
    """
    a, b, c, d = _on_both(ours, theirs)
    if not len(a):
        return Figure(math.nan, -math.inf, math.inf, 0)
    n, value = len(a), float(a.sum() / b.sum() - c.sum() / d.sum())
    mean_b, mean_d = b.mean(), d.mean()
    a, b = np.append(a, [mean_b, 0]), np.append(b, [mean_b, mean_b])
    c, d = np.append(c, [0, mean_d]), np.append(d, [mean_d, mean_d])
    our_share, their_share = a.sum() / b.sum(), c.sum() / d.sum()
    parts = (a - our_share * b) / b.sum() - (
        c - their_share * d
    ) / d.sum()  # each prompt's contribution to the difference
    centre, half = our_share - their_share, Z * math.sqrt((parts**2).sum())
    return Figure(value, max(-1.0, float(centre - half)), min(1.0, float(centre + half)), n)


def paired_ratio_difference(
    ours: tuple[Values, Values],
    theirs: tuple[Values, Values],
    seed: int = 0,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Figure:
    """The difference of two `ratio`s over the same prompts, which are resampled together.

    Args:
        ours: (P,) numerators and (P,) denominators.
        theirs: the same for the other model; prompts without a denominator on either side do not count.
        seed: of the resampling.
        transform: as for `ratio`, applied to each before the difference.

    Returns:
        the figure; with an open interval where all prompts agree, which says nothing about how far others may differ.
    """
    a, b, c, d = _on_both(ours, theirs)
    shape = transform or (lambda x: x)
    if not len(a):
        return Figure(math.nan, -math.inf, math.inf, 0)

    def difference(counts: np.ndarray) -> np.ndarray:
        return shape((counts @ a) / (counts @ b)) - shape((counts @ c) / (counts @ d))

    value = float(difference(np.ones((1, len(a))))[0])
    low, high = bootstrap(difference, len(a), seed) if len(a) > 1 else (value, value)
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        low, high = -math.inf, math.inf
    return Figure(value, low, high, len(a))


def _on_both(ours: tuple[Values, Values], theirs: tuple[Values, Values]) -> list[np.ndarray]:
    """Numerators and denominators of both sides, for the prompts that have both."""
    a, b, c, d = (np.asarray(x, dtype=float) for x in (*ours, *theirs))
    return [x[(b > 0) & (d > 0)] for x in (a, b, c, d)]


def correlation(x: Values, y: Values, units: Sequence[Any] | np.ndarray, seed: int = 0) -> Figure:
    """Pearson's correlation of pairs of numbers, bootstrapped by the unit that they belong to.

    Args:
        x: (N,), not all equal.
        y: (N,), not all equal.
        units: (N,) the prompt of each pair; pairs of one prompt are not independent trials.
        seed: seed of the resampling.

    Returns:
        the figure; with an open interval where there are fewer than four units.
    """
    x, y = (np.asarray(v, dtype=float) - np.mean(v) for v in (x, y))
    sums = by_unit(np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1), units)

    def statistic(counts: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = (counts @ sums).T
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample in which nothing varies
            return (n * sxy - sx * sy) / np.sqrt((n * sxx - sx * sx) * (n * syy - sy * sy))

    value = float(statistic(np.ones((1, len(sums))))[0])
    low, high = bootstrap(statistic, len(sums), seed) if len(sums) > 3 else (-1.0, 1.0)
    return Figure(value, low, high, len(x))


def by_unit(values: np.ndarray, units: Sequence[Any] | np.ndarray) -> np.ndarray:
    """The sums (U, C) of the rows of values (N, C) that belong to each of the different units (N,)."""
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    sums = np.zeros((len(places), values.shape[1]))
    np.add.at(sums, [places[unit] for unit in units], values)
    return sums


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a statistic of n prompts.

    Args:
        statistic: from (D, n) counts, how often each prompt was drawn, to (D,) values; nan where undefined.
        n: number of prompts, at least 2.
        seed: of the resampling.
    """
    generator = np.random.default_rng([seed, n])
    block = max(1, _CELLS // n)
    values = [
        statistic(generator.multinomial(n, np.full(n, 1 / n), size=min(block, DRAWS - start)).astype(float))
        for start in range(0, DRAWS, block)
    ]
    outer = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * student_quantile(n - 1))
    low, high = np.nanquantile(np.concatenate(values), [outer, 1 - outer])
    return float(low), float(high)


def student_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: the exact forms for 1 and 2, above them Cornish and Fisher's expansion.

    The expansion (Abramowitz and Stegun 26.7.5) is off by 0.12 % at 3 degrees of freedom and by less above.
    """
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = Z, degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v ** (power + 1) for power, term in enumerate(terms))


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


def grouped_share(successes: Values, trials: Values) -> tuple[float, float, float]:
    """The pooled share of successes with its 95 % interval, with the groups (prompts) as the independent units.

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
    value = float(s.sum() / t.sum())
    variance = float(((s - value * t) ** 2).sum() / t.sum() ** 2)
    if value in (0.0, 1.0) or groups == 1:
        effective = groups
    elif variance == 0.0:
        return value, value, value
    else:
        effective = max(1, int(value * (1 - value) / variance + 1e-6))
    low, high = wilson_interval(value * effective, effective)
    return value, low, high

"""How far labelers agree, from plain lists: pairs ordered alike, Krippendorff's alpha, Fleiss' kappa.

A unit is what several labelers judged: a prompt with its completions for rankings, one completion for ratings and
flags.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from instructlit.intervals import Z


def pair_agreement(one: Sequence[int], two: Sequence[int]) -> tuple[int, int]:
    """Pairs that two rankings of the same completions order alike, and pairs that neither ties."""
    agree = total = 0
    for i in range(len(one)):
        for j in range(i):
            a, b = one[i] - one[j], two[i] - two[j]
            if a and b:
                total += 1
                agree += (a > 0) == (b > 0)
    return agree, total


@dataclass(frozen=True)
class Share:
    """A share with the half width of its 95 % interval, as the paper writes it: 72.6 ± 1.5 %.

    Example: `str(Share(0.726, 0.015, 5000, 300))` is "72.6 ± 1.5 %".
    """

    value: float  # nan where there is no pair
    half_width: float  # nan where one prompt alone says nothing of the others
    pairs: int
    units: int  # prompts the pairs come from

    def __str__(self) -> str:
        if not self.pairs:
            return "no pair to compare"
        width = "unknown" if math.isnan(self.half_width) else f"{100 * self.half_width:.1f} %"
        return f"{100 * self.value:.1f} ± {width}"


class Tally:
    """Successes of trials, added up unit by unit. The units, not the trials, are taken as independent: one labeler's
    answers on the pairs of one prompt are correlated.
    """

    def __init__(self) -> None:
        self.successes = self.trials = self.units = 0
        self._squares = (0, 0, 0)  # sums over units of s * s, s * n and n * n

    def add(self, successes: int, trials: int) -> None:
        """Count all of a unit; one without trials says nothing."""
        if not trials:
            return
        self.successes, self.trials, self.units = self.successes + successes, self.trials + trials, self.units + 1
        products = (successes * successes, successes * trials, trials * trials)
        ss, sn, nn = (old + new for old, new in zip(self._squares, products, strict=True))
        self._squares = ss, sn, nn

    @property
    def share(self) -> Share:
        """The pooled share.

        The variance is that of a ratio of sums (Cochran 1977, section 2.11), and the interval 1.96 standard errors to
        both sides ("error bars throughout the paper are 95 % confidence intervals", arXiv 2203.02155, figure 1). If
        every trial ends alike its width would be 0; then it is that of Wilson's interval for as many trials as units.
        """
        if not self.trials:
            return Share(math.nan, math.nan, 0, 0)
        value, units = self.successes / self.trials, self.units
        if value in (0.0, 1.0):
            return Share(value, Z**2 / (units + Z**2), self.trials, units)
        if units == 1:
            return Share(value, math.nan, self.trials, units)
        ss, sn, nn = self._squares
        squares = max(ss - 2 * value * sn + value**2 * nn, 0.0)  # the sum over units of (s - value * n) ** 2
        variance = units / (units - 1) * squares / self.trials**2
        return Share(value, Z * math.sqrt(variance), self.trials, units)


def share(counts: Iterable[tuple[int, int]]) -> Share:
    """The pooled share of (successes, trials) of each unit."""
    tally = Tally()
    for successes, trials in counts:
        tally.add(successes, trials)
    return tally.share


def pairwise(units: Iterable[Sequence[Sequence[int]]]) -> Share:
    """How often two labelers order a pair of completions alike, of the pairs that neither ties (paper, section 3.4).

    Args:
        units: for each prompt the rankings of its completions, one per labeler, 1 is best.
    """
    return share(_pair_counts(rankings) for rankings in units)


def _pair_counts(rankings: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Over every two labelers of a prompt: pairs ordered alike, pairs that neither ties."""
    found = [pair_agreement(one, two) for one, two in combinations(rankings, 2)]
    return sum(agree for agree, _ in found), sum(total for _, total in found)


def columns(tasks: Iterable[Iterable[Sequence[Any]]]) -> Iterator[tuple[Any, ...]]:
    """For every completion of every task what its labelers said of it.

    Args:
        tasks: for each task what each labeler said of its completions, in one order.
    """
    for said in tasks:
        yield from zip(*said, strict=True)


def flag_units(found: Iterable[Sequence[Mapping[str, bool]]]) -> dict[str, list[list[bool]]]:
    """For every flag, in alphabetical order, the units of `fleiss_kappa`: what those said of a completion who answered.

    Args:
        found: for every completion the flags that its labelers gave, as `columns` has them.
    """
    units: dict[str, list[list[bool]]] = defaultdict(list)
    for column in found:
        for name in set().union(*column):
            units[name].append([flags[name] for flags in column if name in flags])
    return dict(sorted(units.items()))


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float:
    """Krippendorff's alpha of values in an order, such as ranks or ratings: 1 is perfect agreement, 0 what chance
    gives, below 0 worse than chance.

    Args:
        units: for each unit the values its labelers gave, in any order; units with fewer than two do not count.

    Returns:
        nan where no unit has two values; 1 where there is only one value at all.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    kept = _kept(units)
    if not kept:
        return math.nan
    totals = _totals(kept)
    distance = _ordinal_distance(totals)
    n = sum(totals.values())
    expected = sum(totals[a] * totals[b] * distance(a, b) for a, b in combinations(totals, 2)) / (n - 1)
    observed = sum(
        times * unit[a] * unit[b] * distance(a, b) / (sum(unit.values()) - 1)
        for unit, times in kept
        for a, b in combinations(unit, 2)
    )
    return 1.0 if expected == 0 else 1 - observed / expected


def _ordinal_distance(totals: Counter[int]) -> Callable[[int, int], float]:
    """The squared difference of two values by how many others lie between them."""
    below: dict[int, float] = {}
    seen = 0
    for value in sorted(totals):  # the middle of each value's place among all values in order
        below[value] = seen + totals[value] / 2
        seen += totals[value]
    return lambda a, b: (below[a] - below[b]) ** 2


def fleiss_kappa(units: Iterable[Sequence[bool | int | str]]) -> float:
    """Fleiss' kappa of categories such as a flag: 1 is perfect agreement, 0 what chance gives.

    Units may have different numbers of labelers; those with fewer than two do not count.

    Args:
        units: for each unit the categories its labelers chose.

    Returns:
        nan where no unit has two labelers, or where only one category was ever chosen: then chance alone agrees fully.

    Source: Fleiss 1971, "Measuring nominal scale agreement among many raters".
    """
    kept = _kept(units)
    totals = _totals(kept)
    if len(totals) < 2:
        return math.nan
    agreement = 0.0
    for unit, times in kept:
        n = sum(unit.values())
        agreement += times * sum(count * (count - 1) for count in unit.values()) / (n * (n - 1))
    agreement /= sum(times for _, times in kept)
    everything = sum(totals.values())
    chance = sum((count / everything) ** 2 for count in totals.values())
    return (agreement - chance) / (1 - chance)


def _kept(units: Iterable[Sequence[Any]]) -> list[tuple[Counter[Any], int]]:
    """The units with two values or more, each as its counts, and how often it is there: many are alike."""
    alike = Counter(tuple(values) for values in units)
    return [(Counter(values), times) for values, times in alike.items() if len(values) > 1]


def _totals(kept: Iterable[tuple[Counter[Any], int]]) -> Counter[Any]:
    """How often each value was given over all units."""
    totals: Counter[Any] = Counter()
    for unit, times in kept:
        for value, count in unit.items():
            totals[value] += times * count
    return totals

"""Agreement against worked examples of the literature and values worked out by hand."""

import math
import random

import pytest

from instructlit.agreement import Z, fleiss_kappa, krippendorff_alpha, pair_agreement, pairwise, share
from instructlit.intervals import wilson_interval

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units, gaps.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
UNITS = [[value for value in column if value is not None] for column in zip(*OBSERVERS, strict=True)]

# Fleiss 1971 as worked on Wikipedia, "Fleiss' kappa": ten subjects, fourteen raters, five categories.
COUNTS = [
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
]


def test_krippendorffs_own_example() -> None:
    assert krippendorff_alpha(UNITS) == pytest.approx(0.815, abs=5e-4)


def test_alpha_by_hand() -> None:
    # Units (1, 1) and (1, 2): value 1 three times, 2 once. Coincidences of unlike values: one observed, 3 x 1 / 3 = 1
    # expected: alpha = 1 - 1 / 1 = 0, whatever the (single) distance.
    assert krippendorff_alpha([[1, 1], [1, 2]]) == pytest.approx(0.0)
    # Two units that contradict themselves: observed 2, expected 2 x 2 / 3 = 4/3: alpha = 1 - 3/2
    assert krippendorff_alpha([[1, 2], [2, 1]]) == pytest.approx(-0.5)
    # Two of each in one unit: observed 2 x 2 / 3, as many as expected
    assert krippendorff_alpha([[1, 1, 2, 2]]) == pytest.approx(0.0)
    assert krippendorff_alpha([[1, 1], [2, 2]]) == 1.0
    assert krippendorff_alpha([[3, 3], [3, 3]]) == 1.0, "no variation and no disagreement"
    assert math.isnan(krippendorff_alpha([[1], []]))


def test_ordinal_distance_counts_what_lies_between() -> None:
    # Values 1, 2, 3 with totals n1 = 2, n2 = 2, n3 = 2 (Krippendorff's sum over g from c to k, less half of both ends):
    # d(1,2) = (2 + 2 - 2)^2 = 4, d(2,3) = 4, d(1,3) = (2 + 2 + 2 - 2)^2 = 16.
    # Units (1, 3), (2, 2), (1, 3): observed 2 x 16 = 32; expected (4 x 4 + 4 x 4 + 4 x 16) / 5 = 19.2
    assert krippendorff_alpha([[1, 3], [2, 2], [1, 3]]) == pytest.approx(1 - 32 / 19.2)


def test_alpha_does_not_ask_for_the_names_of_ordinal_values() -> None:
    stretched = [[value * value for value in unit] for unit in UNITS]
    assert krippendorff_alpha(stretched) == pytest.approx(krippendorff_alpha(UNITS))


def test_fleiss_worked_example() -> None:
    units = [[category for category, count in enumerate(row) for _ in range(count)] for row in COUNTS]
    assert fleiss_kappa(units) == pytest.approx(0.210, abs=5e-4)


def test_kappa_by_hand() -> None:
    # Agreements 1, 1, 0; True 3 of 6: chance (1/2)^2 + (1/2)^2 = 1/2; kappa = (2/3 - 1/2) / (1/2) = 1/3
    assert fleiss_kappa([[True, True], [False, False], [True, False]]) == pytest.approx(1 / 3)
    # A unit of three, two of whom agree, has agreement 1/3; unit weights are equal: (1 + 1/3) / 2 = 2/3.
    # True 4 of 5: chance 16/25 + 1/25 = 17/25; kappa = (2/3 - 17/25) / (8/25)
    assert fleiss_kappa([[True, True], [True, True, False]]) == pytest.approx((2 / 3 - 17 / 25) / (8 / 25))
    assert math.isnan(fleiss_kappa([[False, False], [False, False]])), "a flag nobody ever set says nothing"
    assert math.isnan(fleiss_kappa([[True]]))


def test_pairs_by_hand() -> None:
    assert pair_agreement([1, 2, 3], [1, 3, 2]) == (2, 3)
    assert pair_agreement([1, 1, 2], [1, 2, 3]) == (2, 2), "a tie of either is no pair"


def test_pairwise_by_hand() -> None:
    # First prompt, three labelers: 2 of 3, 2 of 3, 1 of 3 is 5 of 9; second, two labelers: 1 of 1. Together 6 of 10.
    # A third with one labeler says nothing.
    found = pairwise([[[1, 2, 3], [1, 3, 2], [2, 1, 3]], [[1, 2], [1, 2]], [[2, 1]]])
    assert (found.value, found.pairs, found.units) == (0.6, 10, 2)
    # residuals 5 - 0.6 x 9 = -0.4 and 1 - 0.6 = 0.4: variance 2 x 0.32 / 100
    assert found.half_width == pytest.approx(Z * math.sqrt(0.0064))
    assert str(found) == "60.0 ± 15.7 %"


def test_one_pair_a_prompt_gives_the_binomial_interval() -> None:
    found = share([(1, 1)] * 726 + [(0, 1)] * 274)
    assert found.half_width == pytest.approx(Z * math.sqrt(0.726 * 0.274 / 999))
    assert str(found) == "72.6 ± 2.8 %"


def test_the_interval_covers_where_the_pairs_of_a_prompt_hang_together() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        counts = []
        for _ in range(80):
            chance, pairs = rng.betavariate(7, 3), rng.choice((6, 15, 36))
            counts.append((sum(rng.random() < chance for _ in range(pairs)), pairs))
        found = share(counts)
        covered += abs(found.value - 0.7) <= found.half_width
    assert 0.92 <= covered / 400 <= 0.98


def test_labelers_who_agree_wholly_may_yet_differ_on_other_prompts() -> None:
    found = share([(3, 3)] * 20)
    assert found.value == 1.0
    assert 1 - found.half_width == pytest.approx(wilson_interval(20, 20)[0])
    assert share([(0, 3)] * 20).half_width == pytest.approx(wilson_interval(0, 20)[1])
    assert share([(3, 7), (9, 21)]).half_width == 0, "rounding must not bring a sum of squares below 0"
    assert str(share([(2, 3)])) == "66.7 ± unknown", "one prompt says nothing of the spread between prompts"


def test_nothing_to_compare() -> None:
    found = pairwise([[[1, 2]], [[1, 1], [1, 2]]])
    assert math.isnan(found.value)
    assert (found.pairs, found.units) == (0, 0)
    assert str(found) == "no pair to compare"

"""The intervals of shares whose trials come in groups, against closed forms, a bootstrap and their own coverage."""

import math

import numpy as np
import pytest

from instructlit.evaluation.intervals import Figure, grouped_share, share, wins
from instructlit.intervals import wilson_interval
from instructlit.tools.scoring import ordered_pairs


@pytest.mark.parametrize(("successes", "trials"), [(0, 12), (3, 10), (50, 100), (337, 600), (9, 9)])
def test_one_trial_a_group_is_wilsons_interval(successes: int, trials: int) -> None:
    outcome = [1.0] * successes + [0.0] * (trials - successes)
    share, low, high = grouped_share(outcome, [1.0] * trials)
    assert share == pytest.approx(successes / trials)
    assert (low, high) == pytest.approx(wilson_interval(successes, trials))


def test_a_model_against_itself_is_exactly_a_half() -> None:
    scores = [[0.3, 0.9], [0.5, 0.5], [0.1, 0.2]]
    won, made = wins(scores, scores)
    assert won.tolist() == [2.0, 2.0, 2.0]
    assert made.tolist() == [4.0, 4.0, 4.0]
    assert grouped_share(won, made) == (0.5, 0.5, 0.5)


def test_wins_by_hand() -> None:
    won, made = wins([[0.2, 0.8], [0.5]], [[0.2, 0.5], [0.6]])
    assert won.tolist() == [0.5 + 0 + 1 + 1, 0.0]  # 0.2 ties 0.2 and loses to 0.5; 0.8 beats both
    assert made.tolist() == [4.0, 1.0]


def test_copies_of_a_trial_add_no_certainty() -> None:
    outcome = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    once = grouped_share(outcome, np.ones(10))
    assert grouped_share(outcome * 50, np.full(10, 50.0)) == pytest.approx(once)


def test_independent_trials_of_a_group_do_add_certainty() -> None:
    generator = np.random.default_rng(0)
    draws = (generator.random((400, 25)) < 0.6).astype(float)
    _, low, high = grouped_share(draws.sum(1), np.full(400, 25.0))
    width = 2 * 1.96 * math.sqrt(0.6 * 0.4 / (400 * 25))
    assert high - low == pytest.approx(width, rel=0.1)


def test_width_agrees_with_a_bootstrap_by_prompt() -> None:
    generator = np.random.default_rng(1)
    quality = generator.beta(2, 2, size=300)  # prompts differ, so that the samples of one are alike
    successes = generator.binomial(4, quality).astype(float)
    share, low, high = grouped_share(successes, np.full(300, 4.0))
    resampled = successes[generator.integers(0, 300, size=(4000, 300))].mean(1) / 4
    expected = np.quantile(resampled, [0.025, 0.975])
    assert [low, high] == pytest.approx(expected.tolist(), abs=0.004)
    naive = wilson_interval(float(successes.sum()), 1200)
    assert high - low > 1.15 * (naive[1] - naive[0]), "taking every sample for independent is too sure"
    assert low < share < high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        quality = generator.beta(1, 1, size=80)
        _, low, high = grouped_share(generator.binomial(3, quality), np.full(80, 3))
        covered += low <= 0.5 <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_groups_of_unequal_size_are_pooled() -> None:
    """1 of 1 and 3 of 9 are 0.6 above and below 0.4 of their trials: a variance of 0.72 / 100, that of 33 trials."""
    assert grouped_share([1, 3], [1, 9]) == pytest.approx((0.4, *wilson_interval(0.4 * 33, 33)))


def test_where_all_agree_or_there_is_one_the_groups_are_the_trials() -> None:
    assert grouped_share([4, 4], [4, 4]) == pytest.approx((1, *wilson_interval(2, 2)))
    assert grouped_share([3], [4]) == pytest.approx((0.75, *wilson_interval(0.75, 1)))


def test_a_figure_rests_on_prompts_and_differs_with_0_outside() -> None:
    assert share([3, 0, 1], [4, 0, 2]).n == 2
    bounds = [(0.1, 0.3), (-0.3, -0.1), (0.0, 0.3), (-0.3, 0.0), (-0.1, 0.1)]
    assert [Figure(0.2, low, high, 5).differs for low, high in bounds] == [True, True, False, False, False]
    assert [Figure(0.2, 0.2, 0.2, n).differs for n in (0, 1)] == [False, True]


def test_no_trials_and_empty_groups() -> None:
    assert grouped_share([], []) == (0.0, 0.0, 1.0)
    assert grouped_share([0, 3, 0], [0, 4, 0]) == grouped_share([3], [4])


def test_pairs_a_labeler_ordered() -> None:
    # ranks 1, 2, 2: the pair of the two seconds is a tie and does not count
    assert ordered_pairs([0.9, 0.5, 0.1], [1, 2, 2]) == (2.0, 2)
    assert ordered_pairs([0.5, 0.5, 0.9], [1, 2, 2]) == (0.5, 2)
    assert ordered_pairs([0.0, 1.0, 2.0], [3, 2, 1]) == (3.0, 3)
    assert ordered_pairs([1.0, 2.0], [1, 1]) == (0.0, 0)

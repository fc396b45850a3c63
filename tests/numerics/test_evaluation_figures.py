"""Bootstrapped and paired intervals, win rates at equal length, best-of-n and the rest of the evaluation's arithmetic,
against closed forms, hand-worked values and simulation."""

import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from instructlit.evaluation import intervals
from instructlit.evaluation.judging import Desk
from instructlit.evaluation.length_control import length_controlled
from instructlit.evaluation.measures import Measure, Study, measured
from instructlit.evaluation.requests import Weights
from instructlit.evaluation.store import Store
from instructlit.evaluation.tasks.best_of_n import best_of_n, best_of_n_kl
from instructlit.evaluation.tasks.bias import entropy, first_likelier
from instructlit.evaluation.tasks.reward_quality import calibration
from instructlit.evaluation.tasks.squad import f1
from instructlit.evaluation.tasks.truthfulqa import choice_scores


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (5, 2.570582), (10, 2.228139), (30, 2.042272), (1000, 1.962339)],
)
def test_student_quantiles(degrees: int, quantile: float) -> None:
    expansion = {3: 2e-3, 5: 2e-4}
    assert intervals.student_quantile(degrees) == pytest.approx(quantile, rel=expansion.get(degrees, 5e-6))


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=25)
    figure = intervals.mean(values)
    half = 2.0639 * values.std(ddof=1) / 5
    assert figure.value == pytest.approx(values.mean())
    assert [figure.low, figure.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.12 * half)
    assert figure.n == 25
    assert intervals.mean(values) == figure, "the same values give the same interval"
    assert intervals.mean(values, seed=1) != figure


def test_a_ratio_weighs_by_its_denominator() -> None:
    figure = intervals.ratio([2.0, 30.0, 99.0], [1.0, 10.0, 0.0])
    assert figure.value == pytest.approx(32 / 11)
    assert figure.n == 2, "a unit without weight does not count"
    surprise = intervals.ratio([2.0, 30.0], [1.0, 10.0], transform=np.exp)
    assert surprise.value == pytest.approx(math.exp(32 / 11))
    assert surprise.low == pytest.approx(math.exp(figure.low))


def test_nothing_and_one_unit() -> None:
    empty = (np.ones(2), np.zeros(2))
    for nothing in (
        intervals.mean([]),
        intervals.paired_share_difference(empty, empty),
        intervals.paired_ratio_difference(empty, empty),
    ):
        assert math.isnan(nothing.value)
        assert (nothing.low, nothing.high, nothing.n) == (-math.inf, math.inf, 0)
    assert intervals.mean([2.0]) == intervals.Figure(2.0, -math.inf, math.inf, 1)


def test_pairing_takes_what_prompts_have_in_common_out() -> None:
    generator = np.random.default_rng(3)
    hard = generator.normal(0, 5, size=200)
    ours, theirs = hard + 0.3 + generator.normal(0, 0.5, 200), hard + generator.normal(0, 0.5, 200)
    figure = intervals.paired_ratio_difference((ours, np.ones(200)), (theirs, np.ones(200)))
    assert figure.differs
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * math.sqrt(0.5) / math.sqrt(200), rel=0.2)


def test_prompts_that_agree_say_nothing_of_others() -> None:
    rating = intervals.paired_ratio_difference(([6.0, 3.0, 4.0], np.ones(3)), ([5.0, 2.0, 3.0], np.ones(3)))
    assert rating.value == pytest.approx(1)
    assert (rating.low, rating.high) == (-math.inf, math.inf)
    alike = intervals.paired_share_difference((np.ones(15), np.ones(15)), (np.ones(15), np.ones(15)))
    assert (alike.value, alike.n) == (0, 15)
    assert (alike.low, alike.high) == pytest.approx((-0.163, 0.163), abs=1e-3)  # 1.96 sqrt(2) / 17


def test_a_difference_of_ratios_is_that_of_its_parts() -> None:
    ours, theirs = ([3.0, 5.0, 4.0, 7.0], [2.0, 2.0, 4.0, 0.0]), ([1.0, 1.0, 9.0, 5.0], [1.0, 1.0, 0.0, 1.0])
    figure = intervals.paired_ratio_difference(ours, theirs)
    assert figure.value == pytest.approx(8 / 4 - 2 / 2), "the last two prompts do not count on either side"
    assert figure.n == 2
    surprise = intervals.paired_ratio_difference(ours, theirs, transform=np.exp)
    assert surprise.value == pytest.approx(math.e**2 - math.e)


def covered(draw, truth: float, times: int = 1000) -> float:  # type: ignore[no-untyped-def]
    """The share of intervals that hold the truth."""
    generator = np.random.default_rng(11)
    found = 0
    for seed in range(times):
        figure = draw(generator, seed)
        found += figure.low <= truth <= figure.high
    return found / times


def test_coverage_of_a_mean_of_few_prompts() -> None:
    share = covered(lambda g, seed: intervals.mean(g.normal(1.0, 1.0, 15), seed), 1.0)
    assert 0.93 <= share <= 0.97


def test_coverage_of_a_ratio() -> None:
    def draw(generator: np.random.Generator, seed: int) -> intervals.Figure:
        tokens = generator.integers(5, 50, size=40).astype(float)
        return intervals.ratio(tokens * 2.0 + generator.normal(0, 12, 40), tokens, seed)

    assert 0.93 <= covered(draw, 2.0) <= 0.97


def test_a_difference_of_shares_is_bonett_and_prices() -> None:
    ours, theirs = np.repeat([1.0, 1, 0, 0], [21, 9, 2, 8]), np.repeat([1.0, 0, 1, 0], [21, 9, 2, 8])
    figure = intervals.paired_share_difference((ours, np.ones(40)), (theirs, np.ones(40)))
    more, less = 10 / 42, 3 / 42  # a prompt is added to either kind on which they differ
    half = 1.959964 * math.sqrt((more + less - (more - less) ** 2) / 42)
    assert (figure.value, figure.n) == (pytest.approx(7 / 40), 40)
    assert (figure.low, figure.high) == pytest.approx((more - less - half, more - less + half))
    thrice = intervals.paired_share_difference((3 * ours, np.full(40, 3)), (theirs, np.ones(40)))
    assert thrice == figure, "trials that say the same are one trial"


@pytest.mark.parametrize("prompts", [15, 30, 200])
@pytest.mark.parametrize(("our_share", "their_share"), [(0.98, 0.92), (0.05, 0.1), (0.5, 0.6)])
def test_coverage_of_a_difference_of_shares(prompts: int, our_share: float, their_share: float) -> None:
    def draw(generator: np.random.Generator, _: int) -> intervals.Figure:
        """A prompt is right or wrong in all of its one to four trials, and half of the prompts are hard for both."""
        shared, made = generator.random(prompts), generator.integers(1, 5, prompts)
        right = [
            np.where(shared < 0.5, shared < share / 2, generator.random(prompts) < share)
            for share in (our_share, their_share)
        ]
        return intervals.paired_share_difference((right[0] * made, made), (right[1] * made, made))

    assert covered(draw, our_share - their_share) >= 0.93


def test_a_measure_of_shares_has_their_difference(tmp_path: Path) -> None:
    study = Study(["base", "ppo"], {}, Desk({}, Store(tmp_path / "verdicts.jsonl")), base="base")
    right = {"base": [1.0, 0.0] * 8, "ppo": [1.0] * 16}
    of_shares, of_means = (measured(study, Measure("", "", ""), right, share=share) for share in (True, False))
    trials = np.ones(16)
    assert of_shares.differences["ppo"] == intervals.paired_share_difference(
        (right["ppo"], trials), (right["base"], trials)
    )
    assert of_means.differences["ppo"] == intervals.paired_ratio_difference(
        (right["ppo"], trials), (right["base"], trials)
    )


def test_coverage_of_a_share() -> None:
    share = covered(lambda g, _: intervals.share((g.random(60) < 0.3).astype(float)), 0.3, times=2000)
    assert 0.93 <= share <= 0.97


# -- win rates at equal length --------------------------------------------------------------------------------------


def test_equal_answers_are_a_half_with_and_without_length() -> None:
    figure = length_controlled(np.full(30, 0.5), np.zeros(30))
    assert (figure.value, figure.low, figure.high) == (0.5, 0.5, 0.5)


def test_a_judge_of_length_alone_is_seen_through() -> None:
    generator = np.random.default_rng(0)
    longer = generator.normal(150, 200, size=600)  # our model is longer on most prompts
    chance = 1 / (1 + np.exp(-2.5 * np.tanh(longer / longer.std())))
    preferred = (generator.random(600) < chance).astype(float)
    assert preferred.mean() > 0.68
    figure = length_controlled(preferred, longer)
    assert figure.low <= 0.5 <= figure.high
    assert abs(figure.value - 0.5) < 0.06


def test_where_length_says_nothing_the_rate_is_the_raw_one() -> None:
    generator = np.random.default_rng(1)
    preferred = (generator.random(400) < 0.7).astype(float)
    assert length_controlled(preferred, generator.normal(0, 100, 400)).value == pytest.approx(
        preferred.mean(), abs=0.01
    )
    assert length_controlled(preferred, np.zeros(400)).value == pytest.approx(preferred.mean(), abs=1e-4)
    assert math.isnan(length_controlled(preferred, np.full(400, 7.0)).value)


def test_the_regression_on_length_is_that_of_another_optimiser() -> None:
    """On tanh of the length in standard deviations, with a ridge of a hundredth on the slope and none on the rate."""
    preferred, longer = np.array([1.0, 1, 0.5, 0, 1, 1]), np.array([10.0, -20, 5, -5, 300, 40])
    target, feature = torch.tensor(preferred), torch.tensor(longer / longer.std()).tanh()
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    fit = torch.optim.LBFGS([line], max_iter=100, tolerance_grad=1e-10)

    def loss() -> float:
        fit.zero_grad()
        found = binary_cross_entropy_with_logits(line[0] + line[1] * feature, target, reduction="sum")
        (found + 0.01 / 2 * line[1] ** 2).backward()
        return found.item()

    fit.step(loss)
    assert length_controlled(preferred, longer).value == pytest.approx(line[0].sigmoid().item(), abs=1e-6)


def test_every_pair_won_stays_finite() -> None:
    figure = length_controlled(np.ones(40), np.random.default_rng(2).normal(0, 50, 40))
    assert figure.value > 0.95
    assert figure.low == pytest.approx(intervals.share(np.ones(40)).low)


# -- what tasks compute ---------------------------------------------------------------------------------------------


def test_best_of_n_agrees_with_every_subset() -> None:
    proxy, gold = np.array([[0.3, 2.0, -1.0, 0.9, 0.5]]), np.array([[5.0, 1.0, 4.0, 2.0, 3.0]])
    for n in range(1, 6):
        best = [gold[0, max(subset, key=lambda i: proxy[0, i])] for subset in itertools.combinations(range(5), n)]
        assert best_of_n(proxy, gold, n)[0] == pytest.approx(np.mean(best))


def test_equal_proxy_scores_share_their_chances() -> None:
    proxy, gold = np.array([[1.0, 1.0, 0.0]]), np.array([[10.0, 20.0, 0.0]])
    assert best_of_n(proxy, gold, 3)[0] == pytest.approx(15.0)
    assert best_of_n(proxy, gold[:, [1, 0, 2]], 2)[0] == pytest.approx(best_of_n(proxy, gold, 2)[0])


def test_best_of_n_kl_against_simulation() -> None:
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(1000) == pytest.approx(5.909, abs=1e-3)  # Gao et al. 2022: 5.9 nats
    # the best of n has density n u^(n-1) in the quantile u of the proxy: KL is the mean of its log
    u = np.random.default_rng(0).random((200_000, 8)).max(axis=1)
    assert np.log(8 * u**7).mean() == pytest.approx(best_of_n_kl(8), abs=0.01)


def test_multiple_choice_by_hand() -> None:
    logs = [math.log(p) for p in (0.2, 0.4, 0.1, 0.3)]
    assert choice_scores(logs, 2) == (0.0, pytest.approx(0.6))  # the best answer loses to the second false one
    assert choice_scores([logs[3], *logs[:3]], 1) == (0.0, pytest.approx(0.3))
    assert choice_scores([math.log(0.5), *logs[:3]], 2)[0] == 1.0
    assert choice_scores([-1.0, -1.0], 1)[0] == 0.0, "as likely is not likelier"
    assert choice_scores([-1000.0, -1001.0], 1)[1] == pytest.approx(1 / (1 + math.exp(-1)))


def test_f1_counts_a_word_as_often_as_both_say_it_and_takes_the_nearest_answer() -> None:
    assert f1("Red, the red!", ["blue", "red red blue"]) == pytest.approx(2 * 2 / (2 + 3))
    assert f1("The.", ["a"]) == 1.0, "neither has a word"


def test_entropy_of_two_sentences() -> None:
    def pair(one: float, other: float) -> Weights:
        return Weights([one, other], [3, 3], [False, False])

    assert entropy(pair(-50.0, -50.0)) == pytest.approx(1.0)
    p = 1 / (1 + math.exp(-1.0))
    assert entropy(pair(-4.0, -5.0)) == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p))
    assert entropy(pair(-1.0, -2000.0)) == pytest.approx(0.0)
    assert [first_likelier(pair(*x)) for x in ((-1.0, -2.0), (-2.0, -1.0), (-1.0, -1.0))] == [1.0, 0.0, 0.5]


def test_calibration_by_hand() -> None:
    # two pairs at sigmoid(log 3) = 0.75, one right: |0.5 - 0.75|; two sure ones, right: |1 - 0.99|
    sure = math.log(99)
    figure, line = calibration(np.array([math.log(3), -math.log(3), sure, sure]), range(4), 10, 0)
    assert figure.value == pytest.approx((2 * 0.25 + 2 * 0.01) / 4, abs=1e-6)
    assert [tuple(round(v, 4) for v in point) for point in line] == [(0.75, 0.5), (0.99, 1.0)]


def test_a_correlation_is_bootstrapped_by_prompt() -> None:
    x = np.arange(40.0)
    y = x + np.random.default_rng(0).normal(0, 15, 40)
    alone = intervals.correlation(x, y, range(40))
    assert alone.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    fisher = np.tanh(np.arctanh(alone.value) + np.array([-1.96, 1.96]) / math.sqrt(37))
    assert (alone.low, alone.high) == pytest.approx(fisher, abs=0.06)
    # pairs of one prompt that say the same are one trial and not three
    thrice = intervals.correlation(np.repeat(x, 3), np.repeat(y, 3), np.repeat(np.arange(40), 3))
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((alone.value, alone.low, alone.high))
    few = intervals.correlation(x[:3], y[:3], range(3))
    assert (few.low, few.high) == (-1, 1)
    with warnings.catch_warnings(action="error"):
        flat = intervals.correlation([0, 0, 0, 1], [0, 0, 0, 1], range(4))  # as many draws are
    line = intervals.correlation(x[:8], 2 * x[:8] + 1, range(8))
    for figure in (flat, line):
        assert (figure.value, figure.low, figure.high) == pytest.approx((1, 1, 1)), "in every draw"


def test_calibration_is_bootstrapped_by_prompt() -> None:
    differences = np.random.default_rng(1).normal(0.5, 1, 30)
    alone, _ = calibration(differences, range(30), 10, 0)
    thrice, _ = calibration(np.repeat(differences, 3), np.repeat(np.arange(30), 3), 10, 0)
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((alone.value, alone.low, alone.high))
    # 0.75 sure and three in four right: draws lie on either side of 0, and not all a quarter or more away
    fair, _ = calibration(np.array([math.log(3), math.log(3), math.log(3), -math.log(3)] * 10), range(40), 10, 0)
    assert fair.value == pytest.approx(0, abs=1e-6)
    assert fair.high < 0.25

"""Agreement and bias of labels, against counts worked out by hand."""

import math

import pytest

from instructlit.agreement import Tally, pair_agreement
from instructlit.labelling.measures import measure

DAY = 24 * 3600


def record(labeler: str, ranks: list[int], task: int = 1, **more) -> dict:
    plain = {
        "task": task,
        "kind": "comparison",
        "prompt": "p",
        "completions": ["a", "bb", "ccc"],
        "order": [2, 0, 1],
        "labeler": labeler,
        "ranks": ranks,
        "ratings": [4, 4, 4],
        "flags": [{"x": False}] * 3,
        "gold": None,
        "seconds": 10.0,
        "submitted_at": 3 * DAY + 5.0,
    }
    return plain | more


def counted(tally: Tally) -> tuple[int, int, int]:
    """Successes, trials and the tasks that they come from."""
    return tally.successes, tally.trials, tally.units


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], (3, 3)),
        ([1, 2, 3], [3, 2, 1], (0, 3)),
        ([1, 2, 3], [1, 3, 2], (2, 3)),
        ([1, 2, 3], [1, 1, 2], (2, 2)),
        ([1, 1, 1], [1, 2, 3], (0, 0)),
    ],
)
def test_pairs_that_both_order(ours: list[int], theirs: list[int], expected: tuple[int, int]) -> None:
    assert pair_agreement(ours, theirs) == expected
    assert pair_agreement(theirs, ours) == expected


def test_agreement_counts_every_two_labelers_of_a_task_once() -> None:
    found = measure([record("a", [1, 2, 3]), record("b", [1, 3, 2]), record("c", [1, 1, 2]), record("a", [1, 2, 3], 2)])
    # a-b agree on 2 of 3; a-c on 2 of 2 (c ties the first two); b-c on (0,2) yes and (1,2) no: 1 of 2
    assert counted(found.agreement["comparison"]) == (5, 7, 1)
    assert counted(found.labelers["a"].others) == (4, 5, 1)
    assert counted(found.labelers["b"].others) == (3, 5, 1)
    assert counted(found.labelers["c"].others) == (3, 4, 1)
    assert counted(found.labelers["c"].ties) == (1, 3, 1)
    assert counted(found.labelers["a"].ties) == (0, 6, 2)
    assert found.labels == {"comparison": 4}
    assert found.days == {3: 4}


def test_position_and_length() -> None:
    # shown: ccc, a, bb. Pairs of positions: ccc-a, ccc-bb, a-bb
    found = measure([record("a", [2, 3, 1])])  # ccc, then a, then bb: always the first shown
    assert counted(found.first) == (3, 3, 1)
    assert counted(found.longer) == (2, 3, 1)  # ccc over a and bb, but a over bb
    found = measure([record("a", [3, 2, 1], completions=["aa", "bb", "c"])])  # c, bb, aa; shown c, aa, bb
    assert counted(found.first) == (2, 3, 1)
    assert counted(found.longer) == (0, 2, 1)  # aa and bb are equally long: no trial


def test_gold_is_apart_from_the_agreement_with_others() -> None:
    found = measure([record("a", [1, 2, 3], gold=[1, 3, 2]), record("b", [3, 2, 1], task=2, gold=[1, 3, 2])])
    assert [counted(found.labelers[name].gold) for name in "ab"] == [(2, 3, 1), (1, 3, 1)]
    assert counted(found.labelers["a"].others) == (0, 0, 0)


def test_flags_agree_where_both_answered() -> None:
    ours = record("a", [1, 2, 3], flags=[{"x": True, "y": True}, {}, {"x": False}])
    theirs = record("b", [1, 2, 3], flags=[{"x": True, "y": False}, {"x": True}, {"x": False}])
    assert counted(measure([ours, theirs]).flag_agreement) == (2, 3, 1)


def test_coefficients_of_outputs_that_several_judged() -> None:
    """Two labelers and four outputs: flag x is yes/yes, yes/no, no/no, no/no; y was answered by one of them alone."""
    two = {"completions": ["a", "b"], "order": [0, 1]}
    records = [
        record("a", [1, 2], ratings=[7, 4], flags=[{"x": True, "y": True}, {"x": True}], **two),
        record("b", [1, 2], ratings=[7, 4], flags=[{"x": True}, {"x": False}], **two),
        record("a", [1, 2], 2, ratings=[1, 2], flags=[{"x": False}] * 2, **two),
        record("b", [2, 1], 2, ratings=[1, 2], flags=[{"x": False}] * 2, **two),
        record("a", [1, 2], 3, ratings=[7, 1], flags=[{"x": True}] * 2, **two),
    ]
    found = measure(records)
    # observed agreement 3/4; 3 of 8 answers are yes: by chance 9/64 + 25/64 = 34/64; kappa = (48 - 34) / (64 - 34)
    assert found.kappa_flags["x"] == pytest.approx(14 / 30)
    assert math.isnan(found.kappa_flags["y"])
    assert found.alpha_ratings == 1.0
    # ranks 1,1 | 2,2 | 1,2 | 2,1: disagreement 2 of 4 units; by chance 4 * 4 / 7 pairs of 4: alpha = 1 - 2 / (16 / 7)
    assert found.alpha_ranks == pytest.approx(1 - 2 / (16 / 7))


def test_labels_from_elsewhere_say_nothing_of_positions() -> None:
    found = measure([record("a", [1, 2, 3], order=None)])
    assert counted(found.first) == (0, 0, 0)
    assert counted(found.longer) == (0, 3, 1)
    assert counted(found.labelers["a"].ties) == (0, 3, 1)


def test_disputed_tasks_come_worst_first_and_agreed_ones_not_at_all() -> None:
    records = [
        *(record(name, [1, 2, 3], task=1) for name in "ab"),
        *(record(name, ranks, task=2) for name, ranks in (("a", [1, 2, 3]), ("b", [1, 3, 2]))),
        *(record(name, ranks, task=3) for name, ranks in (("a", [1, 2, 3]), ("b", [3, 2, 1]))),
        *(record(name, [1, 2, 3], task=4, ratings=[r, 4, 4]) for name, r in (("a", 1), ("b", 7))),
    ]
    disputes = measure(records).disputes
    assert [(d.task, d.agreed, d.pairs, d.rating_gap) for d in disputes] == [(3, 0, 3, 0), (2, 2, 3, 0), (4, 3, 3, 6)]


def test_demonstrations_count_for_throughput_only() -> None:
    plain = {name: record("a", [])[name] for name in ("task", "labeler", "seconds", "submitted_at", "gold", "prompt")}
    found = measure(
        [plain | {"kind": "demonstration"}, plain | {"kind": "demonstration", "labeler": "b", "seconds": 4.0}]
    )
    assert found.labels == {"demonstration": 2}
    assert found.labelers["a"].median_seconds == 10.0
    assert found.disputes == []


def test_the_pairs_of_a_task_are_not_independent() -> None:
    """Of six tasks by two labelers three are ordered alike and three the other way round: half, and known no better
    than from six throws, however many pairs each task has."""
    records = [
        record(name, ranks if name == "b" else [1, 2, 3], task)
        for task in range(6)
        for name, ranks in (("a", [1, 2, 3]), ("b", [1, 2, 3] if task % 2 else [3, 2, 1]))
    ]
    found = measure(records).agreement["comparison"].share
    assert (found.value, found.pairs, found.units) == (0.5, 18, 6)
    # each task is off by 1.5 of its 3 pairs: variance 6 / 5 * 6 * 1.5^2 / 18^2
    assert found.half_width == pytest.approx(1.959964 * math.sqrt(6 / 5 * 6 * 1.5**2 / 18**2))
    assert measure([]).first.share.pairs == 0

"""Gold against proxy over sqrt(KL), on replies whose every figure can be worked out by hand."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl

from instructlit.errors import UserError
from instructlit.evaluation import Answer, Desk, Judge, Question, Study, Verdict, Weights
from instructlit.evaluation.judging import Kind
from instructlit.evaluation.requests import Ask, Weigh
from instructlit.evaluation.store import Store
from instructlit.evaluation.tasks import Overoptimization


class Counting(Judge):
    """A score that is the number of letters, or a rating that is 7 less that number: a judge model rates only."""

    def __init__(self, kind: Kind):
        self.answers = frozenset((kind,))

    def identity(self) -> dict[str, Any]:
        return {}

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        for i, question in enumerate(questions):
            letters = len(question.answers[0])
            yield i, Verdict(float(letters if question.kind == "score" else 7 - letters), "")


def study_of(folder: Path, replies: dict[str, list[Any]]) -> Study:
    judges: dict[str, Judge] = {"reward": Counting("score"), "gold": Counting("rate")}
    return Study(list(replies), replies, Desk(judges, Store(folder / "v.jsonl")), baseline="sft", base="sft")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "prompts.jsonl", ({"prompt": f"Q{i}"} for i in range(3))))


def test_policies_and_best_of_n_stand_where_they_belong(prompts: str, tmp_path: Path) -> None:
    task = Overoptimization(prompts, samples=2, best_of=4)
    asked = task.requests()
    assert all(isinstance(r, Ask) and r.log_probs and r.temperature == 1.0 for r in asked)
    replies = {
        "sft": [Answer(["aa"] * 2, [True] * 2, [[7, 2]] * 2, [-2.0] * 2)] * 3,
        "ppo": [Answer(["bbbb", "bb"], [True] * 2, [[8, 8, 2], [8, 2]], [-1.0 - 0.1 * i, -1.0]) for i in range(3)],
    }
    study = study_of(tmp_path, replies)
    further = task.further(study)
    assert list(further) == ["sft"]
    weighs, asks = further["sft"][:3], further["sft"][3:]
    assert weighs == [Weigh(f"Q{i}", ((8, 8, 2), (8, 2)), plain=False, says=("bbbb", "bb")) for i in range(3)]
    assert all(isinstance(r, Ask) and r.samples == 4 for r in asks)
    assert len(asks) == 3

    told = [Weights([-2.5 - 0.2 * i, -3.0], [3, 2], [False] * 2) for i in range(3)]
    study.further = {"sft": [*told, *[Answer(["a", "aa", "aaa", "aaaa"])] * 3]}
    outcome = task.measure(study)
    columns = {m.name: m.figures for m in outcome.measures}
    kl = (1.5 + 1.6 + 1.7 + 3 * 2.0) / 6
    assert columns["overoptimization/kl"]["ppo"].value == pytest.approx(kl)
    assert columns["overoptimization/kl"]["sft"].value == 0.0
    assert columns["overoptimization/gold"]["ppo"].value == 4.0
    curves = {curve.y: curve.series for curve in outcome.curves}
    assert curves["score by reward"]["models"] == [(0.0, 2.0), (pytest.approx(math.sqrt(kl)), 3.0)]
    for none, sign, name in ((0, 1, "reward"), (7, -1, "gold")):
        points = curves[f"score by {name}"]["best-of-n of sft"]
        assert [x for x, _ in points] == pytest.approx(
            [0.0, math.sqrt(math.log(2) - 0.5), math.sqrt(math.log(4) - 0.75)]
        )
        # the longer of two of 1, 2, 3 and 4: (2 + 3 + 3 + 4 + 4 + 4) / 6
        assert [y for _, y in points] == pytest.approx([none + sign * mean for mean in (2.5, 20 / 6, 4.0)])


def logged(folder: Path, *rows: dict[str, Any]) -> dict[str, str]:
    """A run's samples, of one time where nothing else is said."""
    told = ({"iteration": 0, "response": "a", "prompt": "Q"} | row for row in rows)
    return {"ppo": str(write_jsonl(folder / "ppo.jsonl", told))}


def points(task: Overoptimization, folder: Path) -> list[list[tuple[float, float]]]:
    """The points of a run by the proxy, then by the gold judge."""
    task.requests()
    return [c.series["ppo"] for c in task.measure(study_of(folder, {"sft": []})).curves]


def test_every_sample_of_a_run_counts_though_prompts_repeat(tmp_path: Path) -> None:
    runs = logged(tmp_path, {"score": 0.0, "kl": 1.0}, {"score": 10.0, "kl": 7.0, "response": "bbbbb"})
    task = Overoptimization(policies=False, runs=runs, best_of=0)
    assert points(task, tmp_path) == [[(2.0, 5.0)], [(2.0, 4.0)]]


def test_a_limit_holds_for_the_prompts_of_a_run(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{i}", "iteration": time, "score": 2.0 * i + time, "kl": 4.0} for time in (0, 1) for i in (0, 1)
    ]
    both, first = (
        Overoptimization(policies=False, runs=logged(tmp_path, *rows), best_of=0, limit=limit) for limit in (None, 1)
    )
    assert points(both, tmp_path)[0] == [(2.0, 1.0), (2.0, 2.0)]
    assert points(first, tmp_path)[0] == [(2.0, 0.0), (2.0, 1.0)]


def test_a_run_may_have_prompts_that_are_messages(tmp_path: Path) -> None:
    runs = logged(tmp_path, {"prompt": [{"role": "user", "content": "Q"}], "score": 3.0, "kl": 4.0})
    task = Overoptimization(policies=False, runs=runs, best_of=0)
    assert points(task, tmp_path) == [[(2.0, 3.0)], [(2.0, 6.0)]]


def test_no_gold_judge_and_no_run_in_the_place_of_the_models(tmp_path: Path) -> None:
    runs = logged(tmp_path, {"score": 3.0, "kl": 4.0})
    assert points(Overoptimization(gold=[], policies=False, runs=runs, best_of=0), tmp_path) == [[(2.0, 3.0)]]
    with pytest.raises(UserError, match="a run is called models"):
        Overoptimization(runs={"models": runs["ppo"]})


def test_samples_without_a_kl_are_no_run(tmp_path: Path) -> None:
    runs = logged(tmp_path, {"score": 3.0, "kl": 4.0}, {"score": 3.0, "kl": None})
    with pytest.raises(UserError, match=r"ppo\.jsonl:2: the row has no field `kl`"):
        Overoptimization(policies=False, runs=runs).requests()


def test_a_model_that_draws_no_tokens_has_no_kl_and_no_point(prompts: str, tmp_path: Path) -> None:
    """Ready-made answers have scores, but nobody knows how likely they were."""
    task = Overoptimization(prompts, best_of=0)
    task.requests()
    study = study_of(tmp_path, {"sft": [Answer(["aa"], [True], [[7]], [-1.0])] * 3, "file": [Answer(["b"])] * 3})
    study.further = {"sft": []}
    assert task.further(study) == {"sft": []}
    outcome = task.measure(study)
    columns = {m.name: m.figures for m in outcome.measures}
    assert columns["overoptimization/reward"]["file"].value == 1.0
    assert "file" not in columns["overoptimization/kl"]
    assert [c.series for c in outcome.curves] == [{"models": [(0.0, 2.0)]}, {"models": [(0.0, 5.0)]}]

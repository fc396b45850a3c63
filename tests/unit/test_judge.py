"""A judge in the place of labelers: what it is asked, what becomes of its verdicts, what is asked again."""

import json
from pathlib import Path
from typing import Any

import pytest

from instructlit.cli import main
from instructlit.errors import UserError
from instructlit.evaluation import Question
from instructlit.labels import Task, read_labels, write_tasks
from instructlit.tools import judge as command

asked: list[Question] = []
"""What the functions below were asked."""
stops_at: list[int] = []
"""The number of a question at which the judging is stopped, where there is one."""


def lengthy(question: Question) -> float | None:
    """Prefers, and scores higher, the longer text."""
    if len(asked) in stops_at:
        raise KeyboardInterrupt
    asked.append(question)
    lengths = [len(text) for text in question.answers]
    if question.kind == "compare":
        return 1.0 if lengths[0] > lengths[1] else 0.0
    return float(lengths[0])


def first(question: Question) -> float | None:
    """Takes whatever is shown first, but for one text that it always likes best."""
    asked.append(question)
    return float("best" not in question.answers) if question.answers[1] == "best" else 1.0


def silent(question: Question) -> float | None:
    """Has no verdict where one text is `odd`."""
    asked.append(question)
    return None if "odd" in question.answers else lengthy(question)


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    asked.clear()
    stops_at.clear()


def tasks_file(folder: Path, *completions: list[str], kind: Any = "comparison") -> str:
    path = folder / "tasks.jsonl"
    rows = [
        Task(
            f"t{n}", kind, [{"role": "user", "content": f"p{n}"}], texts, [f"m{i}" for i in range(len(texts))], round=3
        )
        for n, texts in enumerate(completions)
    ]
    write_tasks(path, rows)
    return str(path)


def run(name: str, tasks: str, folder: Path, **options: Any) -> list[Any]:
    output = folder / "labels.jsonl"
    command.judge(f"function:{__name__}.{name}", tasks, str(output), **options)
    return read_labels(output)


def test_scores_make_ranks(tmp_path: Path) -> None:
    (label,) = run("lengthy", tasks_file(tmp_path, ["aa", "b", "cc", "ddd"]), tmp_path)
    assert label.ranks == [2, 3, 2, 1]
    assert (label.labeler, label.round, label.policy) == (f"{__name__}.lengthy", 3, ["m0", "m1", "m2", "m3"])
    assert [question.kind for question in asked] == ["score"] * 4


def test_pairs_are_compared_in_both_orders(tmp_path: Path) -> None:
    (label,) = run("lengthy", tasks_file(tmp_path, ["aa", "b", "ccc"]), tmp_path, by="compare")
    assert label.ranks == [2, 3, 1]
    assert {question.answers for question in asked} == {
        (one, other) for one in ("aa", "b", "ccc") for other in ("aa", "b", "ccc") if one != other
    }
    assert len(asked) == 6


def test_who_prefers_what_comes_first_prefers_nothing(tmp_path: Path) -> None:
    (label,) = run("first", tasks_file(tmp_path, ["a", "best", "b", "c"]), tmp_path, by="compare")
    assert label.ranks == [2, 1, 2, 2], "in the other order it said the opposite of all but the best"


def test_ratings_are_kept_as_ratings(tmp_path: Path) -> None:
    (label,) = run("lengthy", tasks_file(tmp_path, ["aaaa", "b"]), tmp_path, by="rate")
    assert (label.ranks, label.ratings) == ([1, 2], [4, 1])


@pytest.mark.parametrize("by", ["score", "compare"])
def test_a_judge_is_told_which_were_cut_off(tmp_path: Path, by: Any) -> None:
    write_tasks(tmp_path / "tasks.jsonl", [Task("t", "comparison", "p", ["aa", "b"], ended=[False, True])])
    (label,) = run("lengthy", str(tmp_path / "tasks.jsonl"), tmp_path, by=by)
    assert label.ended == [False, True]
    assert [q.ended for q in asked] == [tuple(text == "b" for text in q.answers) for q in asked]


def test_equal_texts_tie_without_being_asked(tmp_path: Path) -> None:
    first, second = run("lengthy", tasks_file(tmp_path, ["aa", "aa"], ["aa", "b", "aa"]), tmp_path, by="compare")
    assert first.ranks == [1, 1]
    assert second.ranks == [1, 2, 1]
    assert len(asked) == 2


def test_what_cannot_be_read_decides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tasks_file(tmp_path, ["aa", "b", "odd"], ["a", "odd"])
    whole, none = run("silent", tasks, tmp_path, by="compare")
    # aa beats b; odd has half a point from each: 1.5, 0.5, 1.0
    assert whole.ranks == [1, 3, 2]
    assert (none.ranks, none.skipped) == (None, command.UNREADABLE)
    assert "6 verdicts were unreadable" in capsys.readouterr().out
    whole, none = run("silent", tasks, tmp_path)
    assert whole.skipped == none.skipped == command.UNREADABLE, "a score that is missing has no place among the others"


def test_interrupted_it_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    tasks = tasks_file(tmp_path, ["aa", "b"], ["c", "dd", "eee"])
    stops_at.append(2)
    with pytest.raises(KeyboardInterrupt):
        run("lengthy", tasks, tmp_path)
    stops_at.clear()
    assert not (tmp_path / "labels.jsonl").exists()
    asked.clear()
    labels = run("lengthy", tasks, tmp_path)
    assert [label.ranks for label in labels] == [[1, 2], [3, 2, 1]]
    assert len(asked) == 3, "two of the five were answered before"
    asked.clear()
    assert run("lengthy", tasks, tmp_path) == labels
    assert asked == []


def test_a_dry_run_asks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.judge(f"function:{__name__}.lengthy", tasks_file(tmp_path, ["a", "b"]), str(tmp_path / "x"), dry_run=True)
    assert asked == []
    assert "2 questions" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["people:x"], "this command does not ask people"),
        (["nonsense"], "`nonsense` is not a judge"),
        (["detoxify:original"], "cannot rank completions"),
        (["api:m", "--by", "score"], "cannot score"),
        (["api:m", "--options", "base_ulr=x"], "did you mean base_url"),
        (["api:m", "--options", "x"], "OPTION=VALUE"),
        (["api:m", "--options", "concurrency=["], "--options concurrency=[: `[` is not valid here"),
        (["api:m", "--options", "base_url=http://[bad"], "judge.base_url: http://[bad is not a web address"),
        (["instructlit.evaluation.judges.RewardJudge"], "judge: RewardJudge needs `model`\n  expected: text"),
        (
            ["reward:m", "--options", "dtype=float23"],
            "judge: dtype: `float23` is not valid here\n  expected: one of float32",
        ),
        (["reward:m", "--options", "dtype=float23"], "(did you mean float32?)"),
        (["api:m", "--options", "base_url=http://127.0.0.1:9", "price_in=1", "price_out=1", "max_cost=0"], "max_cost"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_told(
    tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", words[0], tasks_file(tmp_path, ["a", "b"]), *words[1:]]) == 2
    assert told in capsys.readouterr().err


def test_labels_are_not_written_over_what_they_are_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tasks_file(tmp_path, ["a", "b"])
    monkeypatch.chdir(tmp_path)
    Path("labels.jsonl").symlink_to(tasks)
    for words in (
        ["judge", f"function:{__name__}.lengthy", tasks, "--output", "tasks.jsonl"],
        ["judge", f"function:{__name__}.lengthy", tasks, "--output", "labels.jsonl"],
        ["world", "rank", tasks, "--output", "tasks.jsonl"],
        ["labels", "import", "tasks.jsonl", "--source", "native", "--output", tasks],
        ["labels", "import", "*.jsonl", "--source", "native"],
        ["label", "import", "tasks.jsonl", "--source", "trl", "--output", tasks],
        ["generate", "models/sft", "tasks.jsonl", "--output", tasks],
    ):
        assert main(words) == 2
        assert "is also an input and would be overwritten" in capsys.readouterr().err
    assert main(["judge", f"function:{__name__}.lengthy", tasks, "--output="]) == 2
    assert "--output: '' is a folder" in capsys.readouterr().err
    assert main(["judge", f"function:{__name__}.lengthy", tasks, "--output", "tasks.jsonl/labels.jsonl"]) == 2
    assert "--output: tasks.jsonl is a file" in capsys.readouterr().err
    assert main(["judge", f"function:{__name__}.lengthy", ""]) == 2
    assert "is a folder that was not written by `datasets`" in capsys.readouterr().err
    assert asked == []


def test_a_demonstration_is_not_for_a_judge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a demonstration"):
        run("lengthy", tasks_file(tmp_path, [], kind="demonstration"), tmp_path)


def test_verdicts_lie_beside_the_labels(tmp_path: Path) -> None:
    run("lengthy", tasks_file(tmp_path, ["a", "b"]), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "labels.verdicts.jsonl").read_text().splitlines()]
    assert [row["value"][0] for row in rows] == [1.0, 1.0]

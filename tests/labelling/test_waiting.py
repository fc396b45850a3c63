"""A round of the loop and the labelling database: on SQLite, and on PostgreSQL where there is a server."""

from pathlib import Path

import pytest
from kills import killed_while_writing
from label_helpers import COMPARISON, add_people, add_tasks, label

from instructlit.errors import UserError
from instructlit.labelling import tasks as tasks_of_database
from instructlit.labelling.database import Database
from instructlit.labels import Task, read_labels, write_tasks
from instructlit.labels.records import task_id
from instructlit.tools.iterate.waiting import labelled


def asked(folder: Path, round: int, prompts: int = 2) -> Path:
    """A file of comparisons, as `collect` writes it."""
    texts = ["a", "bb", "ccc"]
    rows = [
        Task(task_id("comparison", f"p{n}", texts, round), "comparison", f"p{n}", texts, ["x", "y", "x"], round=round)
        for n in range(prompts)
    ]
    path = folder / str(round) / "tasks.jsonl"
    write_tasks(path, rows)
    return path


def test_rounds_share_a_database(tmp_path: Path, database_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(database_name)
    (anna,) = add_people(database, "anna")
    for round in (1, 2):
        add_tasks(database, COMPARISON | {"round": round})  # of somebody else
        label(database, anna, 3, 2, 1)
        tasks = asked(tmp_path, round)
        labels = tasks.with_name("labels.jsonl")
        assert not labelled(tasks, labels, 1, database_name, wait=False)
        label(database, anna, 1, 2, 2, ratings=[7, 3, 3])
        assert not labelled(tasks, labels, 1, database_name, wait=False)
        assert "1 of 2 tasks have 1 labels" in capsys.readouterr().out
        label(database, anna, 2, 1, 3)
        assert labelled(tasks, labels, 1, database_name, wait=False)
        given = read_labels(labels)
        assert [(one.round, one.labeler, one.policy) for one in given] == [(round, "anna", ["x", "y", "x"])] * 2
        assert [one.ranks for one in given] == [[1, 2, 2], [2, 1, 3]]
        assert given[0].ratings == [7, 3, 3]
    database.close()


def test_labels_are_taken_again_where_a_kill_came_before_the_record_of_them(
    tmp_path: Path, file_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (anna,) = add_people(file_database, "anna")
    name, labels, tasks = str(file_database), tmp_path / "1" / "labels.jsonl", asked(tmp_path, 1, prompts=1)
    labelled(tasks, labels, 1, name, wait=False)
    label(file_database, anna, 1, 2, 3)
    killed_while_writing(monkeypatch, "labels.made.json")
    with pytest.raises(KeyboardInterrupt):
        labelled(tasks, labels, 1, name, wait=False)
    monkeypatch.undo()
    assert labelled(tasks, labels, 1, name, wait=False)
    assert [one.ranks for one in read_labels(labels)] == [[1, 2, 3]]


def test_other_tasks_are_asked_for_anew(tmp_path: Path, file_database: Database) -> None:
    (anna,) = add_people(file_database, "anna")
    name, labels = str(file_database), tmp_path / "1" / "labels.jsonl"
    tasks = asked(tmp_path, 1)
    labelled(tasks, labels, 1, name, wait=False)
    for _ in range(2):
        label(file_database, anna, 1, 2, 3)
    assert labelled(tasks, labels, 1, name, wait=False)
    tasks = asked(tmp_path, 1, prompts=3)  # a changed recipe, say
    assert not labelled(tasks, labels, 1, name, wait=False), "the labels that lie there are of other tasks"
    label(file_database, anna, 3, 2, 1)
    assert labelled(tasks, labels, 1, name, wait=False)
    assert [one.ranks for one in read_labels(labels)] == [[1, 2, 3], [1, 2, 3], [3, 2, 1]]


def test_nothing_left_is_told(tmp_path: Path, file_database: Database) -> None:
    tasks = asked(tmp_path, 1, prompts=1)
    labelled(tasks, tmp_path / "labels.jsonl", 1, str(file_database), wait=False)
    with file_database.write() as session:
        tasks_of_database.decide(session, "olga", tasks_of_database.find_task(session, 1), "withdraw")
    with pytest.raises(UserError, match="every task was withdrawn"):
        labelled(tasks, tmp_path / "labels.jsonl", 1, str(file_database), wait=False)


def test_a_database_that_is_gone_is_told(
    tmp_path: Path, file_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def it_is_moved_away(seconds: float) -> None:
        Path(str(file_database)).rename(tmp_path / "elsewhere.db")

    monkeypatch.setattr("instructlit.tools.iterate.waiting.time.sleep", it_is_moved_away)
    with pytest.raises(UserError, match=r"there is no database `.*labels\.db`"):
        labelled(asked(tmp_path, 1), tmp_path / "labels.jsonl", 1, str(file_database), wait=True)

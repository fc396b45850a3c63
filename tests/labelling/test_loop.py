"""The loop with people, two rounds to the report: their answers come over the labelling tool, on either database."""

import json
from pathlib import Path
from typing import Any

import pytest
from label_helpers import add_people, ranked, save, take
from loop_helpers import rows, run_stages_here, write_loop

from instructlit.cli import main
from instructlit.labelling import tasks, work
from instructlit.labelling.database import Database
from instructlit.labelling.schema import Person

LABELERS = ("anna", "ben")


def answer_all(database: Database, person: Person, kind: str) -> int:
    """Hand in every task of a kind, what comes first in the alphabet first; how many there were."""
    count = 0
    while assignment := take(database, person, kind):
        with database.read() as session:
            texts = tasks.find_task(session, assignment.task_id).completions
        answer = ranked(*(sorted(set(texts)).index(text) + 1 for text in texts))
        if kind == "evaluation":
            del answer["outputs"]
        save(database, person, assignment, 0, answer)
        with database.write() as session:
            work.submit(session, person, assignment.id, 1)
        count += 1
    return count


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose stages run in this process."""
    monkeypatch.chdir(tmp_path)
    run_stages_here(monkeypatch)
    return tmp_path


def test_two_rounds_of_people(
    folder: Path,
    tiny_llama_dir: Path,
    prompts_file: Path,
    demonstrations_file: Path,
    database_name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {"label": "people", "labelers": 2, "database": database_name}
    write_loop(folder, tiny_llama_dir, prompts_file, demonstrations_file, **asked)

    def iterate() -> str:
        assert main(["iterate", "--config", "loop.yaml", "--output", "run"]) == 0
        return capsys.readouterr().out

    database = Database(database_name)
    people = add_people(database, *LABELERS)
    for number in (1, 2):
        for kind, count in (("comparison", 12), ("evaluation", 6)):
            assert f"0 of {count} tasks have 2 labels" in (told := iterate())
            assert f"`instructlit label --database {database}` serves them" in told
            assert [answer_all(database, person, kind) for person in people] == [count, count], f"round {number}"
    assert "round 2: 24 comparisons" in iterate()
    database.close()

    home = folder / "run" / "rounds"
    results: list[dict[str, Any]] = [json.loads((home / str(n) / "round.json").read_text()) for n in (1, 2)]
    assert [(result["labels"], result["contest_tasks"]) for result in results] == [(24, 6), (24, 6)]
    assert "accuracy_before" in results[1]
    for number in (1, 2):
        for name in ("comparisons", "comparisons_validation"):
            for row in rows(home / str(number) / "data" / f"{name}.jsonl"):
                assert row["ranks"] == [sorted(row["completions"]).index(text) + 1 for text in row["completions"]]
                assert (row["round"], row["labeler"] in LABELERS) == (number, True)
                assert len(row["policy"]) == len(row["ratings"]) == 3
    assert (folder / "run" / "report.html").read_text().count("<tr>") == 3, "a head and two rounds"
    assert main(["lineage", "run"]) == 0, "everything is what it was made from"

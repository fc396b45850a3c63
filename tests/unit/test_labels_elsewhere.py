"""Tasks out of the files of other tools, which nobody need have labelled: into the database, or a file of tasks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

from instructlit.cli import main
from instructlit.labelling.database import Database
from instructlit.labelling.schema import Task as StoredTask
from instructlit.labels import Label, Task, read_labels, read_tasks, write_labels, write_tasks
from instructlit.labels.records import for_database, task_id

CHAT: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say <b> & 'hi'."}]
TASKS = [
    Task("c1", "comparison", "Count.", ["one", "two", "three"], ["m1", "m2", "m1"], [1.0, 2.0, 3.0], 2, "other", "u"),
    Task("e1", "evaluation", CHAT, ["hi", "hello\n"], ["m1", "m2"]),
    Task("d1", "demonstration", "Write."),
]
BLIND = [replace(task, policy=None, scores=None) for task in TASKS]
Run = Callable[..., str]

RECORDS = [  # as Argilla's client exports what nobody has answered yet, and what somebody has
    {"id": "0b6d1c1e-1f8a-4a6e", "fields": {"prompt": "Count.", "response_2": "two", "response_1": "one"},
     "metadata": {}, "suggestions": {}, "responses": {}, "vectors": {}, "status": "pending", "_server_id": None},
    {"id": "2", "fields": {"prompt": "Add.", "completion_1": "3", "completion_2": "4"}, "metadata": {"topic": "sums"},
     "suggestions": {}, "responses": {"order": [{"value": ["completion_2", "completion_1"], "user_id": "u"}]},
     "vectors": {}, "status": "completed", "_server_id": None},
    {"id": "3", "fields": {"prompt": "Write."}, "metadata": {}, "suggestions": {}, "responses": {}, "vectors": {},
     "status": "pending", "_server_id": None},
]  # fmt: skip
STUDIO = [  # as Label Studio exports a ranker's project and a pairwise one
    {"id": 1, "annotations": [], "file_upload": "a.json", "drafts": [], "predictions": [], "meta": {}, "project": 5,
     "data": {"prompt": "Count.", "items": [{"id": "a", "title": "A", "body": "one"}, {"id": "b", "title": "two"}]}},
    {"id": 2, "annotations": [], "predictions": [], "data": {"prompt": "Add.", "text1": "3", "text2": "4"}},
    {"id": 3, "annotations": [], "predictions": [], "data": {"prompt": "Write."}},
]  # fmt: skip
PAIRS = [
    {"prompt": "Count.", "chosen": "two", "rejected": "one"},
    {"prompt": CHAT, "chosen": [{"role": "assistant", "content": "a"}],
     "rejected": [{"role": "assistant", "content": "b"}]},
    {"prompt": "Count.", "chosen": "one", "rejected": "two"},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Gives a command in an empty folder; what it said, errors where it ended with one."""
    monkeypatch.chdir(tmp_path)

    def give(*words: Any, status: int = 0) -> str:
        ended = main([str(word) for word in words])
        told = capsys.readouterr()
        assert ended == status, told.err
        return told.err if status else told.out

    return give


def write(name: str, value: Any) -> str:
    Path(name).write_text(json.dumps(value) if name.endswith(".json") else "".join(json.dumps(v) + "\n" for v in value))
    return name


def stored(database: str = "labels.db") -> list[dict[str, Any]]:
    """The tasks of a database."""
    opened = Database(database, create=False)
    with opened.read() as session:
        found = [
            {"kind": task.kind, "prompt": task.prompt, "completions": task.completions, "policies": task.policies,
             "use_case": task.use_case, "user": task.customer, "round": task.round, "extra": task.extra}
            for task in session.query(StoredTask).order_by(StoredTask.id)
        ]  # fmt: skip
    opened.close()
    return found


@pytest.mark.parametrize("tool", ["argilla", "label_studio"])
def test_our_tasks_come_back_as_they_were(run: Run, tool: str) -> None:
    write_tasks("tasks.jsonl", TASKS)
    run("labels", "export", "--tasks", "tasks.jsonl", "--to", tool, "--output", ".")
    assert "3 tasks" in run("label", "import", f"{tool}.json", "--source", tool, "--output", "back.jsonl")
    assert read_tasks("back.jsonl") == BLIND
    assert "3 new tasks, 0 already there" in run("label", "import", f"{tool}.json", "--source", tool)
    assert "0 new tasks, 3 already there" in run("label", "import", f"{tool}.json", "--source", tool)
    for task, there in zip(BLIND, stored(), strict=True):
        assert {name: there[name] for name in for_database(task)} == for_database(task)
        assert set(there["policies"]) <= {None}, "the tool never knew who wrote what"


def test_pairs_come_back_as_pairs(run: Run) -> None:
    rows = [{"prompt": "Count.", "chosen": "two", "rejected": "one"}]
    run("label", "import", write("pairs.jsonl", rows), "--source", "trl", "--output", "tasks.jsonl")
    run("labels", "import", "pairs.jsonl", "--source", "trl", "--tasks", "tasks.jsonl")
    run("labels", "export", "labels.jsonl", "--tasks", "tasks.jsonl", "--to", "trl", "--validation_fraction", "0")
    assert [json.loads(line) for line in Path("data/comparisons.jsonl").read_text().splitlines()] == rows
    run("label", "import", "pairs.jsonl", "--source", "trl")
    run("labels", "import", "pairs.jsonl", "--source", "trl", "--database", "labels.db")
    assert len(stored()) == 1, "the label belongs to the task that was there"


def test_what_an_export_leaves_out_does_not_come_into_the_database(run: Run) -> None:
    def label(prompt: str, ranks: list[int], **more: Any) -> Label:
        return Label(prompt, "comparison", prompt, "anna", ["a", "b"], ranks, **more)

    given = [label("fit", [1, 2]), label("fit", [2, 1]), label("unfit", [1, 2], reported=["private"])]
    write_labels("given.jsonl", [*given, replace(given[2], labeler="bob", reported=[])])
    into = ("labels", "import", "given.jsonl", "--source", "native", "--database", "labels.db")
    assert "there is no database `labels.db`" in run(*into, status=2)
    assert not Path("labels.db").exists(), "a misspelt name would stand for labels that nobody else sees"
    run("label", "add-labeler", "owner", "--role", "owner")
    told = run(*into)
    assert "1 new label, 0 already labelled" in told
    assert "left out: 2 of a prompt reported as unsuitable\nleft out: 1 revised later by the same labeler" in told
    run("labels", "export", "--database", "labels.db", "--to", "labels", "--output", ".")
    assert [(one.prompt, one.ranks) for one in read_labels("labels.jsonl")] == [("fit", [2, 1])]


def test_files_as_the_tools_write_them(run: Run) -> None:
    expected = [
        ("comparison", "Count.", ["one", "two"]),
        ("comparison", "Add.", ["3", "4"]),
        ("demonstration", "Write.", []),
    ]
    for tool, rows in (("argilla", RECORDS), ("label_studio", STUDIO)):
        words = ("label", "import", write(f"{tool}.json", rows), "--source", tool)
        assert "3 new tasks" in run(*words, "--database", f"{tool}.db", "--overlap", "2", "--round", "4")
        found = stored(f"{tool}.db")
        assert [(task["kind"], task["prompt"], task["completions"]) for task in found] == expected
        assert {task["round"] for task in found} == {4}
        run(*words, "--output", "tasks.jsonl")
        assert [(task.kind, task.prompt, task.completions) for task in read_tasks("tasks.jsonl")] == expected
    assert [task.task for task in read_tasks("tasks.jsonl")] == [task_id(*task) for task in expected]
    assert "2 tasks, 1 duplicate" in run(
        "label", "import", write("pairs.jsonl", PAIRS), "--source", "trl", "--output", "tasks.jsonl"
    )
    assert [task.completions for task in read_tasks("tasks.jsonl")] == [["one", "two"], ["a", "b"]]
    assert read_tasks("tasks.jsonl")[1].prompt == CHAT


def test_what_the_file_does_not_say_is_said_for_it(run: Run) -> None:
    words = ("label", "import", write("a.json", RECORDS[:2]), "--source", "argilla")
    run(*words, "--kind", "evaluation", "--output", "tasks.jsonl")
    assert {task.kind for task in read_tasks("tasks.jsonl")} == {"evaluation"}
    run(*words, "--kind", "demonstration", "--output", "tasks.jsonl")
    assert [task.completions for task in read_tasks("tasks.jsonl")] == [[], []]
    run(
        "label", "import", write("p.jsonl", PAIRS), "--source", "trl", "--kind", "evaluation", "--output", "tasks.jsonl"
    )
    assert {task.kind for task in read_tasks("tasks.jsonl")} == {"evaluation"}


BAD: list[tuple[str, Any, list[str]]] = [
    ("argilla", [{"text": "x"}], ["bad.json", "fields", "found no prompt"]),
    ("argilla", [RECORDS[0], {"fields": {"prompt": " "}}], ["bad.json", "2", "prompt: the text is blank"]),
    ("argilla", [{"fields": {"prompt": "p", "completion_1": "x"}}], ["completions: found 1\n"]),
    ("argilla", [{"fields": {"prompt": "p", "completion_1": "x", "completion_2": 3}}], ["completions[1]"]),
    ("argilla", [{"fields": {"prompt": "p"}, "metadata": {"kind": "ranking"}}], ["kind: found 'ranking'"]),
    ("argilla", [{"fields": {"prompt": "p"}, "metadata": "m"}], ["metadata: found 'm'", "an object"]),
    ("label_studio", [{"id": 1, "prompt": "p"}], ["data: found no prompt", "`prompt`, and `items` to order"]),
    ("label_studio", [{"data": {"prompt": "p", "items": ["x", "y"]}}], ["data.items", "objects with `id`"]),
    ("label_studio", [{"data": {"prompt": "p", "items": [{"id": 1, "body": "x"}] * 2}}], ["an id occurs twice"]),
    ("label_studio", [{"data": {"prompt": "p", "items": [{"id": 1, "body": "x"}, {"id": 2, "body": 5}]}}],
     ["completions[1]: found", "text"]),
    ("label_studio", [{"data": {"prompt": 5}}], ["prompt: found", "text, or a list of messages"]),
    ("label_studio", "nothing", ["bad.json: found str", "an array of objects"]),
    ("trl", [{"prompt": "p", "chosen": "x"}], ["bad.json", "rejected"]),
    ("trl", [{"prompt": "p", "completions": ["x", "y"], "ranks": [1, 2]}], ["bad.json"]),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "value", "told"), BAD)
def test_a_bad_file_is_told_and_adds_nothing(run: Run, tool: str, value: Any, told: list[str]) -> None:
    write("bad.json", value)
    for target in ((), ("--output", "tasks.jsonl")):
        error = run("label", "import", "bad.json", "--source", tool, *target, status=2)
        assert all(word in error for word in told), error
        assert "Traceback" not in error
    assert not Path("tasks.jsonl").exists()
    assert not Path("labels.db").exists()


def test_words_that_do_not_go_together(run: Run) -> None:
    write("a.json", RECORDS)
    write("rows.jsonl", [{"prompt": "p"}])
    assert "--kind: is needed" in run("label", "import", "rows.jsonl", status=2)
    assert "--gold" in run("label", "import", "a.json", "--source", "argilla", "--gold", status=2)
    assert "--output" in run("label", "import", "rows.jsonl", "--kind", "demonstration", "--output", "x", status=2)
    words = ("label", "import", "a.json", "--source", "argilla", "--output", "x.jsonl", "--overlap", "2")
    assert "--overlap: a file of tasks does not say" in run(*words, status=2)
    assert "missing.json" in run("label", "import", "missing.json", "--source", "argilla", status=2)
    same = [RECORDS[1], RECORDS[1] | {"fields": {"prompt": "Other.", "completion_1": "3", "completion_2": "4"}}]
    words = ("label", "import", write("b.json", same), "--source", "argilla", "--output", "x.jsonl")
    assert "'2' is also the id of another task" in run(*words, status=2)
    unlabelled = run("labels", "import", write("c.json", RECORDS[:1]), "--source", "argilla", status=2)
    assert "`instructlit label import --source argilla`" in unlabelled

"""What is read out: one plain record for each label, and the row that our datamodules read.

A record has `task`, `kind`, `prompt`, `completions`, `policies`, `use_case`, `user`, `round`, `source`, `extra`, `gold`
(the known ranks, or None), `labeler`, `order` (as it was shown), `seconds`, `submitted_at`, `notes`, and by its kind
`completion`, `ranks` (1 is best, without gaps), `ratings`, `flags`. Lists are in the order of `completions`.
"""

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructlit.labelling.answers import dense
from instructlit.labelling.questions import KINDS
from instructlit.labelling.schema import IN_USE, Assignment, Person, Task

_CHUNK = 500


def label_records(
    session: Session, kinds: Collection[str] = KINDS, rounds: Collection[int] | None = None, gold: bool = False
) -> Iterator[dict[str, Any]]:
    """Every label that was handed in, by task and then labeler; nothing of prompts held back or withdrawn.

    Args:
        session: a session of `Database.read`.
        kinds: the kinds of task wanted.
        rounds: the rounds wanted; all when not given.
        gold: whether labels of questions with a known answer are among them.
    """
    query = (
        select(Assignment, Task, Person.name)
        .join(Task, Task.id == Assignment.task_id)
        .join(Person, Person.id == Assignment.person_id)
        .where(Assignment.state == "done", Task.state.in_(IN_USE), Task.kind.in_(kinds))
        .order_by(Task.id, Assignment.id)
        .execution_options(yield_per=_CHUNK)
    )
    if rounds is not None:
        query = query.where(Task.round.in_(rounds))
    if not gold:
        query = query.where(Task.state != "gold")
    for assignment, task, labeler in session.execute(query):
        yield record_of(assignment, task, labeler)


def record_of(assignment: Assignment, task: Task, labeler: str) -> dict[str, Any]:
    """The record of one label."""
    answer = assignment.answer
    record = {
        "task": task.id,
        "kind": task.kind,
        "prompt": task.prompt,
        "completions": task.completions,
        "policies": task.policies,
        "use_case": task.use_case,
        "user": task.customer,
        "round": task.round,
        "source": task.source,
        "extra": task.extra,
        "gold": task.gold,
        "labeler": labeler,
        "order": assignment.order,
        "seconds": round(assignment.seconds, 1),
        "submitted_at": assignment.finished_at,
        "notes": answer["notes"],
    }
    if "completion" in answer:
        record["completion"] = answer["completion"]
    if "ranks" in answer:
        record["ranks"] = dense(answer["ranks"])
    if "outputs" in answer:
        record["ratings"] = [output["rating"] for output in answer["outputs"]]
        flags = [output["flags"] for output in answer["outputs"]]
        record["flags"] = [{name: said for name, said in each.items() if said is not None} for each in flags]
    return record


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a row of a demonstration or comparison file; an evaluation is a comparison of named policies."""
    fields = ["prompt"]
    fields += ["completion"] if record["kind"] == "demonstration" else ["completions", "ranks", "ratings", "flags"]
    row = {name: record[name] for name in fields if name in record}
    if any(record["policies"]):
        row["policy"] = [name or "unknown" for name in record["policies"]]
    optional = ("labeler", "use_case", "user", "round", "seconds", "task")
    return row | {name: record[name] for name in optional if record[name] is not None}

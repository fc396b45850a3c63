"""Export: one plain record per label, and the corresponding row of a file of labels.

A record has `task`, `key` (the same for the same task in every database), `kind`, `prompt`, `completions`, `policies`,
`use_case`, `user`, `round`, `source`, `extra`, `gold` (the known ranks, or None), `labeler`, `order` (as shown),
`seconds`, `submitted_at`, `instructions` (the version the labeler saw), `notes`, and by its kind `completion`, `ranks`
(1 is best, without gaps), `ratings`, `flags`, lists in the order of `completions`. A label from elsewhere has None for
`order`, `seconds` and `instructions` if they are not known, and `ratings` and `flags` only if they were given.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructlit.labelling.answers import dense
from instructlit.labelling.questions import KINDS
from instructlit.labelling.schema import IN_USE, Assignment, Person, Task

_CHUNK = 500
_ID = re.compile("[0-9a-f]{16}")  # as `instructlit.labels.records.task_id` makes them
_FIELDS = (
    *("task", "kind", "prompt", "completion", "completions", "ranks", "ratings", "flags", "labeler"),
    *("use_case", "user", "round", "seconds", "instructions"),
)


def label_records(
    session: Session, kinds: Collection[str] = KINDS, rounds: Collection[int] | None = None, gold: bool = False
) -> Iterator[dict[str, Any]]:
    """Every submitted label, by task and then labeler, except those of prompts held back or withdrawn.

    Args:
        session: a session of `Database.read`.
        kinds: the kinds of task to include.
        rounds: the rounds to include; all if not given.
        gold: whether to include labels of questions with a known answer.
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
    answer, here = assignment.answer, assignment.version > 0
    record = {
        "task": task.id,
        "key": task.key,
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
        "order": assignment.order if here else None,
        "seconds": round(assignment.seconds, 1) if here or assignment.seconds else None,
        "submitted_at": assignment.finished_at,
        "instructions": assignment.instructions,
        "notes": answer["notes"],
    }
    if "completion" in answer:
        record["completion"] = answer["completion"]
    if "ranks" in answer:
        record["ranks"] = dense(answer["ranks"])
    if "outputs" in answer:
        ratings = [output["rating"] for output in answer["outputs"]]
        flags = [output["flags"] for output in answer["outputs"]]
        if None not in ratings:
            record["ratings"] = ratings
        if any(flags):
            record["flags"] = [{name: said for name, said in each.items() if said is not None} for each in flags]
    return record


def label_row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a row of a file of labels (`instructlit.labels`), which training can read too.

    A task that came with an id of our own form, such as those of `instructlit collect`, keeps it; any other gets the
    start of its key, so that rows of several databases can be in one file. Other values of `task` are not ids.
    """
    row = {name: record[name] for name in _FIELDS if record.get(name) is not None}
    row["task"] = _own_id(record["extra"]) or record["key"][:16]
    if record["kind"] == "demonstration":
        row.pop("completions")
        return row
    if any(record["policies"]):
        row["policy"] = [name or "unknown" for name in record["policies"]]
    ended = record["extra"].get("ended")  # from a task of ours, or from a file of `instructlit generate`
    if isinstance(ended, list) and [type(end) for end in ended] == [bool] * len(record["completions"]):
        row["ended"] = ended
    return row


def _own_id(extra: dict[str, Any]) -> str | None:
    """The id that a task of ours came with: in our own field, or as `task` in a row of a file of tasks."""
    named, in_file = extra.get("instructlit_task"), extra.get("task")
    return named or (in_file if isinstance(in_file, str) and _ID.fullmatch(in_file) else None)

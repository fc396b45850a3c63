"""Imports labels that were made elsewhere: in another tool, by a judge, in another database."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructlit.labelling import audit, people
from instructlit.labelling.answers import blank, checked, missing
from instructlit.labelling.refusals import Invalid
from instructlit.labelling.schema import Assignment, Person, Revision, Task
from instructlit.labelling.tasks import Added, add_tasks, refresh_state, taken_in


def add_labels(session: Session, actor: str, records: Iterable[Mapping[str, Any]], source: str | None = None) -> Added:
    """Imports labels as submitted work, and adds missing tasks and labelers.

    A record has `task` (a record of `tasks.add_tasks`), `labeler`, and by the task's kind `completion`, or `ranks` with
    optional `ratings` and `flags`, lists in the order of the task's completions; optional `seconds`, and `where`, for
    messages. A label on a task that its labeler has already started or finished is skipped: nothing is
    overwritten.

    Args:
        session: a session of `Database.write`.
        actor: who imports them, for the audit log.
        records: the records.
        source: where new tasks come from.

    Raises:
        Invalid: naming the record, the field and what was expected.
    """
    records = list(records)
    add_tasks(session, actor, (record["task"] for record in records), source=source)
    tasks = taken_in(session, (record["task"] for record in records))
    new = 0
    for number, (task, record) in enumerate(zip(tasks, records, strict=True), 1):
        new += _add(session, actor, task, record, record.get("where", f"label {number}"))
    return Added(new, len(records) - new)


def _add(session: Session, actor: str, task: Task, record: Mapping[str, Any], where: str) -> bool:
    """Whether the label was new."""
    with _told_at(where):
        person = _labeler(session, actor, record["labeler"])
    here = select(Assignment.id).where(Assignment.task_id == task.id, Assignment.person_id == person.id)
    if session.scalar(here) is not None:
        return False
    answer, now = _answer(task, record, where), time.time()
    assignment = Assignment(
        task_id=task.id,
        person_id=person.id,
        state="done",
        order=list(range(len(task.completions))),
        version=0,  # nothing was changed here, which distinguishes such labels from work done here
        answer=answer,
        seconds=float(record.get("seconds") or 0.0),
        lease_until=now,
        created_at=now,
        updated_at=now,
        finished_at=now,
    )
    session.add(assignment)
    session.flush()
    session.add(Revision(assignment_id=assignment.id, version=0, answer=answer, created_at=now))
    refresh_state(session, task)
    audit.note(session, actor, "import label", f"assignment {assignment.id}", task=task.id, labeler=person.name)
    return True


@contextmanager
def _told_at(where: str) -> Iterator[None]:
    """Makes errors raised inside name the record."""
    try:
        yield
    except Invalid as error:
        raise Invalid(error.what, where=f"{where}: {error.where}", expected=error.expected) from error


def _labeler(session: Session, actor: str, name: str) -> Person:
    found = session.scalar(select(Person).where(Person.name == name))
    return found or people.add_without_token(session, actor, name, "labeler")


def _answer(task: Task, record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record as an answer; ratings and yes/no questions may be missing, unlike in work done here."""
    count = len(task.completions)
    answer = blank(task.kind, count)
    if "completion" in answer:
        answer["completion"] = record.get("completion")
    else:
        answer["ranks"] = record.get("ranks")
    if "outputs" in answer:
        ratings, flags = record.get("ratings") or [None] * count, record.get("flags") or [{}] * count
        answer["outputs"] = [{"rating": rating, "flags": said} for rating, said in zip(ratings, flags, strict=True)]
    with _told_at(where):
        whole = checked(task.kind, count, answer)
    if problems := missing(task.kind, {name: value for name, value in whole.items() if name != "outputs"}):
        raise Invalid(" ".join(problems), where=where, expected="a complete answer")
    return whole

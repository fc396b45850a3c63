"""The owner's view of all tasks and people: counts, lists, pending decisions."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructlit.labelling.schema import Assignment, Event, Flag, Person, Task

PAGE = 50


def task_counts(session: Session) -> dict[str, dict[str, int]]:
    """For each kind of task, how many are in each state."""
    counts: dict[str, dict[str, int]] = {}
    query = select(Task.kind, Task.state, func.count()).group_by(Task.kind, Task.state)
    for kind, state, count in session.execute(query):
        counts.setdefault(kind, {})[state] = count
    return counts


def assignment_counts(session: Session) -> dict[str, dict[str, int]]:
    """For each labeler, how many assignments are in each state."""
    query = (
        select(Person.name, Assignment.state, func.count())
        .join(Assignment, Assignment.person_id == Person.id)
        .group_by(Person.name, Assignment.state)
    )
    counts: dict[str, dict[str, int]] = {}
    for name, state, count in session.execute(query):
        counts.setdefault(name, {})[state] = count
    return counts


def tasks(session: Session, kind: str | None, state: str | None, after: int) -> Sequence[Any]:
    """A page of tasks by id, each with the number of labels submitted."""
    done = select(func.count()).where(Assignment.task_id == Task.id, Assignment.state == "done").scalar_subquery()
    query = select(Task, done).where(Task.id > after).order_by(Task.id).limit(PAGE)
    if kind:
        query = query.where(Task.kind == kind)
    if state:
        query = query.where(Task.state == state)
    return session.execute(query).all()


def assignments(session: Session, task: Task) -> Sequence[Any]:
    """All assignments of a task, each with the labeler's name."""
    query = select(Assignment, Person.name).join(Person).where(Assignment.task_id == task.id).order_by(Assignment.id)
    return session.execute(query).all()


def open_flags(session: Session) -> Sequence[Flag]:
    """Reports that are still undecided."""
    return session.scalars(select(Flag).where(Flag.decision.is_(None)).order_by(Flag.id)).all()


def skip_reasons(session: Session) -> dict[str, int]:
    """How often tasks were skipped, by reason."""
    query = select(Assignment.reason, func.count()).where(Assignment.state == "skipped").group_by(Assignment.reason)
    return {str(reason): count for reason, count in session.execute(query)}


def newest_event(session: Session) -> int:
    """The id of the newest event: every change increases it."""
    return session.scalar(select(func.max(Event.id))) or 0

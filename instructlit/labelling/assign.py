"""Who gets which task. A task goes to at most `overlap` people at a time; an expired lease does not count.

The queue is by priority, then oldest first, so that a started task reaches its overlap before new ones are
opened. Questions with a known answer are mixed in, one in `GOLD_EVERY`, and look like any other task.
"""

import random
import time

from sqlalchemy import bindparam, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from instructlit.labelling import audit
from instructlit.labelling.answers import blank
from instructlit.labelling.refusals import NotFound
from instructlit.labelling.schema import IN_USE, Assignment, Person, Revision, Task

GOLD_EVERY = 10
_TRIES = 50

# Built once, since building takes longer than executing. An assignment keeps others from its task if it was submitted,
# or is open within its lease.
_HELD = aliased(Assignment)
_TAKEN = (
    select(func.count())
    .select_from(_HELD)
    .where(or_(_HELD.state == "done", (_HELD.state == "open") & (_HELD.lease_until > bindparam("now"))))
)
_QUEUE = (
    select(Task)
    .where(Task.state == bindparam("state"), Task.kind == bindparam("kind"))
    .where(~exists().where(Assignment.task_id == Task.id, Assignment.person_id == bindparam("person")))
    .where(or_(Task.state == "gold", _TAKEN.where(_HELD.task_id == Task.id).scalar_subquery() < Task.overlap))
    .order_by(Task.priority.desc(), Task.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)


def next_assignment(session: Session, person: Person, kind: str, lease_seconds: float) -> Assignment | None:
    """What `person` works on next: the task that is still open, otherwise a new one; None if nothing is waiting."""
    session.execute(select(Person.id).where(Person.id == person.id).with_for_update())  # one window at a time
    now = time.time()
    current = _current(session, person, kind, now)
    if current is not None:
        current.lease_until = now + lease_seconds
        return current
    for _ in range(_TRIES):  # on PostgreSQL somebody else may lock a task first
        task = _candidate(session, person, kind, now)
        if task is None:
            return None
        if task.state == "gold" or _in_hands(session, task, now) < task.overlap:
            return _assign(session, person, task, now, lease_seconds)
    return None


def find_assignment(session: Session, person: Person, assignment_id: int, lock: bool = False) -> Assignment:
    """One of a person's own assignments.

    Raises:
        NotFound: if there is none with that id, or it is somebody else's; the message does not say which.
    """
    query = select(Assignment).where(Assignment.id == assignment_id, Assignment.person_id == person.id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    found = session.scalar(query) if 0 < assignment_id < 2**31 else None
    if found is None:
        raise NotFound("you have no such assignment")
    return found


def find_assignment_of_task(session: Session, task: Task, labeler: str) -> Assignment:
    """The assignment that a labeler submitted for a task.

    Raises:
        NotFound: if there is none.
    """
    query = select(Assignment).join(Person).where(Assignment.task_id == task.id, Person.name == labeler)
    found = session.scalar(query.where(Assignment.state == "done"))
    if found is None:
        raise NotFound(f"{labeler[:80]!r} has not handed in a label for task {task.id}")
    return found


def waiting(session: Session, person: Person) -> dict[str, int]:
    """For each kind, how many tasks `person` could still be given (including those that others are working on)."""
    still_open = Task.state.in_(("open", "gold"))
    everything = select(Task.kind, func.count()).where(still_open).group_by(Task.kind)
    seen = select(Task.kind, func.count()).join(Assignment, Assignment.task_id == Task.id).group_by(Task.kind)
    mine = dict(session.execute(seen.where(still_open, Assignment.person_id == person.id)).all())
    return {kind: count - mine.get(kind, 0) for kind, count in session.execute(everything)}


def _current(session: Session, person: Person, kind: str, now: float) -> Assignment | None:
    """The open assignment of a person, unless it was never touched and its place was taken after its lease expired."""
    query = (
        select(Assignment)
        .join(Task)
        .where(Assignment.person_id == person.id, Assignment.state == "open", Task.kind == kind)
        .where(Task.state.in_(IN_USE))
        .order_by(Assignment.id)
    )
    for assignment in session.scalars(query).all():
        touched = assignment.version > 0
        if (
            touched
            or assignment.lease_until > now
            or _in_hands(session, assignment.task, now) < assignment.task.overlap
        ):
            return assignment
    return None


def _candidate(session: Session, person: Person, kind: str, now: float) -> Task | None:
    gold_seen, finished = session.execute(
        select(func.count().filter(Task.state == "gold"), func.count())
        .select_from(Assignment)
        .join(Task)
        .where(Assignment.person_id == person.id, Task.kind == kind)
    ).one()
    gold_is_due = gold_seen * GOLD_EVERY <= finished
    for state in ("gold", "open") if gold_is_due else ("open", "gold"):
        task = session.scalar(_QUEUE, {"state": state, "kind": kind, "person": person.id, "now": now})
        if task is not None:
            return task
    return None


def _in_hands(session: Session, task: Task, now: float) -> int:
    return session.scalar(_TAKEN.where(_HELD.task_id == task.id), {"now": now}) or 0


def _assign(session: Session, person: Person, task: Task, now: float, lease_seconds: float) -> Assignment:
    order = list(range(len(task.completions)))
    random.SystemRandom().shuffle(order)
    assignment = Assignment(
        task_id=task.id,
        person_id=person.id,
        state="open",
        order=order,
        version=0,
        answer=blank(task.kind, len(task.completions)),
        seconds=0.0,
        lease_until=now + lease_seconds,
        created_at=now,
        updated_at=now,
    )
    session.add(assignment)
    session.flush()
    first = Revision(assignment_id=assignment.id, version=0, answer=assignment.answer, created_at=now)
    session.add(first)
    audit.note(session, person.name, "assign", f"assignment {assignment.id}", task=task.id, order=order)
    return assignment

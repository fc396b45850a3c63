"""What a labeler does with an assignment. Every change names the version it was made from; if it is not the current
one, nothing changes and `Stale` is raised, so two windows of one person cannot overwrite each other.
"""

import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructlit.labelling import audit
from instructlit.labelling.answers import checked, missing, shown, text
from instructlit.labelling.assign import find_assignment
from instructlit.labelling.instructions import check_version
from instructlit.labelling.questions import FLAG_KINDS, SKIP_REASONS
from instructlit.labelling.refusals import Invalid, NotAllowed, Stale
from instructlit.labelling.schema import IN_USE, Assignment, Flag, Person, Revision, Task
from instructlit.labelling.tasks import refresh_state

MAX_NOTE = 2_000
_SLACK_SECONDS = 5.0


def save(
    session: Session,
    person: Person,
    assignment_id: int,
    version: int,
    answer: dict[str, Any],
    *,
    seconds: float,
    lease_seconds: float,
    nonce: str | None = None,
    instructions: int | None = None,
) -> Assignment:
    """Stores a draft and renews the lease.

    A repeated save, whose reply was lost, is recognised by its `nonce`; what was added since is stored on top.

    Args:
        session: a session of `Database.write`.
        person: whose assignment it is.
        assignment_id: its id.
        version: the version that the draft was made from.
        answer: the complete answer, lists in the order of the task's completions.
        seconds: time worked since the last save.
        lease_seconds: how long the task stays reserved for this person without another save.
        nonce: a text that is unique to every save, and unchanged if that save is sent again, with or without additions.
        instructions: the version of the instructions that the labeler saw.

    Raises:
        Stale: the assignment has another version; Invalid: the answer is malformed; NotAllowed: it is no longer open.
    """
    assignment = _open(session, person, assignment_id)
    if nonce is not None and assignment.version != version and head(session, assignment).nonce == nonce:
        version = assignment.version
    _expect(assignment, version)
    _spend(assignment, seconds)
    draft = checked(assignment.task.kind, len(assignment.task.completions), answer)
    assignment.lease_until = assignment.updated_at + lease_seconds
    if instructions is not None and instructions != assignment.instructions:
        check_version(session, assignment.task.kind, instructions)
        assignment.instructions = instructions
    if draft != assignment.answer:
        _advance(session, person, assignment, "save", draft, parent=version, redo=None, nonce=nonce)
    return assignment


def step(session: Session, person: Person, assignment_id: int, version: int, direction: str) -> Assignment:
    """Undoes ("undo") the last change, or repeats ("redo") an undone one; does nothing if there is none.

    Raises:
        Stale: the assignment has another version; NotAllowed: it is no longer open.
    """
    assignment = _open(session, person, assignment_id)
    _expect(assignment, version)
    here = head(session, assignment)
    to = here.redo if direction == "redo" else here.parent
    if to is not None:
        target = _revision(session, assignment, to)
        redo = target.redo if direction == "redo" else version
        _advance(session, person, assignment, direction, target.answer, parent=target.parent, redo=redo, nonce=None)
    return assignment


def submit(session: Session, person: Person, assignment_id: int, version: int) -> Assignment:
    """Submits the answer. It counts even if the lease expired and others were given the task meanwhile.

    Raises:
        Stale: the assignment has another version; Invalid: something is missing; NotAllowed: it is no longer open.
    """
    assignment = _open(session, person, assignment_id)
    _expect(assignment, version)
    problems = missing(assignment.task.kind, shown(assignment.answer, assignment.order))
    if problems:
        raise Invalid(" ".join(problems))
    _finish(session, person, assignment, "done", "submit", instructions=assignment.instructions)
    return assignment


def skip(session: Session, person: Person, assignment_id: int, reason: str, note: str) -> Assignment:
    """Skips a task with a reason; somebody else gets it, and the draft is kept."""
    if reason not in SKIP_REASONS:
        raise Invalid("found another reason", where="reason", expected=", ".join(SKIP_REASONS))
    assignment = _open(session, person, assignment_id)
    assignment.reason, assignment.note = reason, text(note, "note", MAX_NOTE)
    _finish(session, person, assignment, "skipped", "skip", reason=reason)
    return assignment


def flag(session: Session, person: Person, assignment_id: int, kind: str, note: str) -> Assignment:
    """Reports the prompt; nobody is given it, and nothing of it is exported, until the owner has decided."""
    if kind not in FLAG_KINDS:
        raise Invalid("found another kind", where="kind", expected=", ".join(FLAG_KINDS))
    assignment = _open(session, person, assignment_id)
    said = text(note, "note", MAX_NOTE)
    session.add(Flag(task_id=assignment.task_id, person_id=person.id, kind=kind, note=said, created_at=time.time()))
    assignment.reason, assignment.note = kind, said
    assignment.task.state = "held"
    _finish(session, person, assignment, "flagged", "flag", kind=kind)
    return assignment


def reopen(session: Session, person: Person, assignment_id: int, lease_seconds: float) -> Assignment:
    """Reopens a submitted or skipped task.

    Raises:
        NotAllowed: if it is open, was flagged, or is held back by the owner.
    """
    assignment = _locked(session, person, assignment_id)
    if assignment.state not in ("done", "skipped"):
        raise NotAllowed(f"this task is {assignment.state}", expected="a task that you handed in or skipped")
    now = time.time()
    assignment.state, assignment.finished_at, assignment.updated_at = "open", None, now
    assignment.lease_until = now + lease_seconds
    refresh_state(session, assignment.task)
    audit.note(session, person.name, "reopen", f"assignment {assignment.id}", task=assignment.task_id)
    return assignment


def readable(assignment: Assignment) -> Assignment:
    """The assignment, if its owner may still see the prompt.

    Raises:
        NotAllowed: if the prompt was flagged or withdrawn.
    """
    if assignment.task.state not in IN_USE:
        raise NotAllowed("this prompt was reported and is held back", fix="your work on it is kept; take another task")
    return assignment


def head(session: Session, assignment: Assignment) -> Revision:
    """The current revision of the assignment, which shows whether there is something to undo or redo."""
    return _revision(session, assignment, assignment.version)


def _locked(session: Session, person: Person, assignment_id: int) -> Assignment:
    """The assignment and its task, locked in the same order by everybody."""
    task_id = find_assignment(session, person, assignment_id).task_id
    session.get(Task, task_id, with_for_update=True, populate_existing=True)
    return readable(find_assignment(session, person, assignment_id, lock=True))


def _open(session: Session, person: Person, assignment_id: int) -> Assignment:
    assignment = _locked(session, person, assignment_id)
    if assignment.state != "open":
        raise NotAllowed("this task is no longer open", fix="you can reopen it from your history")
    return assignment


def _expect(assignment: Assignment, version: int) -> None:
    if assignment.version != version:
        what = f"this task was changed elsewhere: it is at version {assignment.version}, not {version}"
        raise Stale(what, fix="reload the page; the other change is not lost")


def _spend(assignment: Assignment, seconds: float) -> None:
    """Adds time worked, but no more than has passed since the last save."""
    now = time.time()
    passed = max(0.0, now - assignment.updated_at) + _SLACK_SECONDS
    assignment.seconds += min(max(0.0, seconds), passed)
    assignment.updated_at = now


def _revision(session: Session, assignment: Assignment, version: int) -> Revision:
    query = select(Revision).where(Revision.assignment_id == assignment.id, Revision.version == version)
    return session.scalars(query).one()


def _advance(
    session: Session,
    person: Person,
    assignment: Assignment,
    action: str,
    answer: dict[str, Any],
    *,
    parent: int | None,
    redo: int | None,
    nonce: str | None,
) -> None:
    assignment.version += 1
    assignment.answer = answer
    assignment.updated_at = time.time()
    session.add(
        Revision(
            assignment_id=assignment.id,
            version=assignment.version,
            answer=answer,
            parent=parent,
            redo=redo,
            nonce=nonce[:64] if nonce else None,
            created_at=assignment.updated_at,
        )
    )
    audit.note(session, person.name, action, f"assignment {assignment.id}", version=assignment.version)


def _finish(session: Session, person: Person, assignment: Assignment, state: str, action: str, **detail: Any) -> None:
    assignment.state = state
    assignment.finished_at = assignment.updated_at = time.time()
    refresh_state(session, assignment.task)
    subject = f"assignment {assignment.id}"
    audit.note(session, person.name, action, subject, task=assignment.task_id, version=assignment.version, **detail)

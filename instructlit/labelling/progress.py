"""A person's own progress."""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructlit.labelling.schema import IN_USE, Assignment, Person, Task

HISTORY = 200
_DAY = 24 * 3600


def of_person(session: Session, person: Person) -> dict[str, Any]:
    """Counts by state (`done`, `skipped`, `flagged`), `today` (submitted within 24 hours), `seconds` worked on what was
    submitted, and `open`: the ids, kinds and prompts of open work.
    """
    rows = session.execute(
        select(Assignment.state, func.count(), func.sum(Assignment.seconds))
        .where(Assignment.person_id == person.id)
        .group_by(Assignment.state)
    )
    counts = {state: (count, seconds) for state, count, seconds in rows}
    today = select(func.count()).where(
        Assignment.person_id == person.id, Assignment.state == "done", Assignment.finished_at > time.time() - _DAY
    )
    begun = (
        select(Assignment.id, Task.kind, Task.prompt)
        .join(Task)
        .where(Assignment.person_id == person.id, Assignment.state == "open", Task.state.in_(IN_USE))
        .order_by(Assignment.id)
    )
    return {
        **{state: counts.get(state, (0, 0))[0] for state in ("done", "skipped", "flagged")},
        "seconds": counts.get("done", (0, 0.0))[1],
        "today": session.scalar(today),
        "open": session.execute(begun).all(),
    }


def history(session: Session, person: Person) -> Sequence[Any]:
    """The newest finished assignments of a person, each with its kind and prompt; reported prompts are not shown."""
    query = (
        select(Assignment.id, Assignment.state, Assignment.finished_at, Assignment.seconds, Task.kind, Task.prompt)
        .join(Task)
        .where(Assignment.person_id == person.id, Assignment.state.in_(("done", "skipped")))
        .where(Task.state.in_(IN_USE))
        .order_by(Assignment.finished_at.desc())
        .limit(HISTORY)
    )
    return session.execute(query).all()

"""Writing and reading the audit log. An event is written in the same transaction as its change: both or neither."""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructlit.labelling.schema import Event

COMMAND_LINE = "command line"


def note(session: Session, actor: str, action: str, subject: str, **detail: Any) -> None:
    """Append one event."""
    event = Event(at=time.time(), actor=actor[:80], action=action, subject=subject[:80], detail=detail)
    session.add(event)


def events(
    session: Session, before: int | None = None, limit: int = 100, subject: str | None = None
) -> Sequence[Event]:
    """The newest events first; `before` is the id of the event to continue from."""
    query = select(Event).order_by(Event.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Event.id < before)
    if subject is not None:
        query = query.where(Event.subject == subject)
    return session.scalars(query).all()

"""The text beside the work, in Markdown; the owner edits it, and every version is kept."""

import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructlit.labelling import audit
from instructlit.labelling.answers import text
from instructlit.labelling.questions import KINDS
from instructlit.labelling.refusals import NotFound
from instructlit.labelling.schema import Instruction


def instructions(session: Session, kind: str) -> str | None:
    """The text that holds for a kind of task, or None where nobody has written any.

    Raises:
        NotFound: no such kind.
    """
    if kind not in KINDS:
        raise NotFound(f"there is no kind of task {kind[:40]!r}", expected=", ".join(KINDS))
    query = select(Instruction.text).where(Instruction.kind == kind).order_by(Instruction.id.desc()).limit(1)
    return session.scalar(query)


def set_instructions(session: Session, actor: str, kind: str, markdown: str) -> None:
    """Write a new version."""
    instructions(session, kind)
    row = Instruction(kind=kind, text=text(markdown, "instructions"), created_at=time.time())
    session.add(row)
    session.flush()
    audit.note(session, actor, "edit instructions", f"instructions {kind}", version=row.id)

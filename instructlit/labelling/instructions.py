"""The instructions shown next to a task, in Markdown; the owner edits them, and every version is kept."""

import time
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructlit.labelling import audit
from instructlit.labelling.answers import text
from instructlit.labelling.questions import KINDS
from instructlit.labelling.refusals import Invalid, NotFound
from instructlit.labelling.schema import Instruction


def instructions(session: Session, kind: str) -> Instruction | None:
    """The current version for a kind of task, or None if there is none.

    Raises:
        NotFound: if there is no such kind.
    """
    if kind not in KINDS:
        raise NotFound(f"there is no kind of task {kind[:40]!r}", expected=", ".join(KINDS))
    return session.scalar(select(Instruction).where(Instruction.kind == kind).order_by(Instruction.id.desc()).limit(1))


def set_instructions(session: Session, actor: str, kind: str, markdown: str) -> None:
    """Writes a new version."""
    instructions(session, kind)
    row = Instruction(kind=kind, text=text(markdown, "instructions"), created_at=time.time())
    session.add(row)
    session.flush()
    audit.note(session, actor, "edit instructions", f"instructions {kind}", version=row.id)


def begin_with(session: Session, actor: str, texts: Mapping[str, str]) -> None:
    """Writes the first version for every kind that has none, so that each label can name its version."""
    for kind, markdown in texts.items():
        if instructions(session, kind) is None:
            set_instructions(session, actor, kind, markdown)


def check_version(session: Session, kind: str, version: int) -> None:
    """Checks that a version exists.

    Raises:
        Invalid: if it does not exist for this kind of task.
    """
    found = session.get(Instruction, version)
    if found is None or found.kind != kind:
        raise Invalid(f"there is no version {version}", where="instructions", expected=f"a version for {kind}")

"""The tables. Times are seconds since 1970 in UTC; texts of any length; lists and objects as JSON.

`Revision` and `Event` are append-only: the database itself refuses to change or delete their rows (migrations/).
"""

from typing import Any

from sqlalchemy import JSON, Double, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

IN_USE = ("open", "full", "gold")
"""States of tasks that labelers may see and whose labels count."""

_NAMES = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
_JSON = JSON(none_as_null=True)


class Base(DeclarativeBase):
    """Constraint names are fixed, so that migrations can refer to them on either database."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {str: Text, float: Double, dict[str, Any]: _JSON, list[Any]: _JSON}


class Person(Base):
    """A person who signs in: `role` is "labeler" or "owner"."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]


class Token(Base):
    """A person's sign-in token; only its SHA-256 is kept (it is 256 random bits, so no slow hash is needed)."""

    __tablename__ = "token"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]
    person: Mapped[Person] = relationship()


class Login(Base):
    """A browser that signed in with a token; it ends with the token."""

    __tablename__ = "login"
    id: Mapped[int] = mapped_column(primary_key=True)
    token_id: Mapped[int] = mapped_column(ForeignKey("token.id"), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float]
    expires_at: Mapped[float]
    ended_at: Mapped[float | None]


class Task(Base):
    """A prompt with the work to be done on it.

    `state`: "open" (labels are wanted), "full" (it has `overlap` labels), "gold" (a question whose correct ranks
    are known, in `gold`; everybody gets it once, whatever the overlap), "held" (somebody flagged it, the owner has to
    decide), "withdrawn" (nobody sees it again, nothing of it is exported). `key` is a hash of the content: the same
    task is not added twice. Short columns come first: SQLite reads a row up to the column that it needs.
    """

    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int]
    overlap: Mapped[int]
    round: Mapped[int | None]
    gold: Mapped[list[Any] | None]
    key: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float]
    use_case: Mapped[str | None]
    customer: Mapped[str | None]  # `user` in rows
    source: Mapped[str | None]
    policies: Mapped[list[Any]]  # of text or null, one a completion; never shown to labelers
    prompt: Mapped[Any] = mapped_column(_JSON)  # text, or a list of messages
    completions: Mapped[list[Any]]  # of texts; empty for demonstrations
    extra: Mapped[dict[str, Any]]


Index("ix_task_queue", Task.state, Task.kind, Task.priority.desc(), Task.id)


class Assignment(Base):
    """A task assigned to a person: one row per task and person, written only by that person.

    `state`: "open", "done", "skipped", "flagged". `order[shown] = index of the completion`, drawn for this labeler.
    `version` counts changes; a change names the version that it was made from. After `lease_until`, an open one no
    longer keeps others from the task, but its answer stays and can still be submitted. `instructions` is the id of the
    `Instruction` shown at the last save; None for imported labels and those from before this was recorded.
    """

    __tablename__ = "assignment"
    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"))
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    state: Mapped[str] = mapped_column(String(16))
    order: Mapped[list[Any]]
    version: Mapped[int]
    answer: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    lease_until: Mapped[float]
    reason: Mapped[str | None]
    note: Mapped[str | None]
    created_at: Mapped[float]
    updated_at: Mapped[float]
    finished_at: Mapped[float | None]
    instructions: Mapped[int | None]
    task: Mapped[Task] = relationship()
    person: Mapped[Person] = relationship()

    __table_args__ = (UniqueConstraint("task_id", "person_id"), Index("ix_assignment_person", "person_id", "state"))


class Revision(Base):
    """Every state an answer was ever in. `parent` is where undo leads, `redo` where redo does."""

    __tablename__ = "revision"
    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignment.id"))
    version: Mapped[int]
    answer: Mapped[dict[str, Any]]
    parent: Mapped[int | None]
    redo: Mapped[int | None]
    nonce: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]

    __table_args__ = (UniqueConstraint("assignment_id", "version"),)


class Flag(Base):
    """A report that a prompt is private or harmful, and the owner's decision."""

    __tablename__ = "flag"
    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), index=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    kind: Mapped[str] = mapped_column(String(16))
    note: Mapped[str]
    created_at: Mapped[float]
    decision: Mapped[str | None] = mapped_column(String(16))
    decided_at: Mapped[float | None]
    task: Mapped[Task] = relationship()
    person: Mapped[Person] = relationship()


class Instruction(Base):
    """The instructions that labelers read next to a task, in Markdown; the newest row of a kind is current."""

    __tablename__ = "instruction"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), index=True)
    text: Mapped[str]
    created_at: Mapped[float]


class Event(Base):
    """The audit log: who did what to what, when."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(80))
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(80), index=True)
    detail: Mapped[dict[str, Any]]

"""Adding tasks, and what the owner does with them."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from instructlit.data.fields import Fields
from instructlit.errors import UserError
from instructlit.labelling import audit
from instructlit.labelling.answers import text
from instructlit.labelling.questions import KINDS
from instructlit.labelling.refusals import Invalid, NotFound
from instructlit.labelling.schema import IN_USE, Assignment, Flag, Task
from instructlit.rubric import MAX_OUTPUTS, MIN_OUTPUTS

_BATCH = 500
_MOST = 2**31 - 1
"""The largest integer that both databases can store."""


@dataclass(frozen=True)
class Added:
    """The number of records added, and of those skipped because the database already has the task."""

    new: int
    known: int


def add_tasks(
    session: Session, actor: str, records: Iterable[Mapping[str, Any]], *, overlap: int = 1, source: str | None = None
) -> Added:
    """Adds records as tasks, in their order.

    A record has `kind` ("demonstration", "comparison", "evaluation"), `prompt` (text, or messages that end before the
    assistant's turn) and, except for demonstrations, 2 to 9 `completions`; optional `policies` (a name for each
    completion, or one for all), `gold` (the correct ranks: a question with a known answer), `use_case`,
    `user`, `round`, `overlap`, `priority` (higher is earlier), `extra`, an object that is kept and exported unchanged,
    and `where`, for messages.

    Args:
        session: a session of `Database.write`.
        actor: who adds them, for the audit log.
        records: the records.
        overlap: how many people label a task without its own `overlap`.
        source: where they come from, such as a file name; for information.

    Raises:
        Invalid: naming the record, from 1, the field and what was expected.
    """
    return add_rows(session, actor, task_rows(records, overlap=overlap, source=source), source)


def task_rows(
    records: Iterable[Mapping[str, Any]], *, overlap: int = 1, source: str | None = None
) -> list[dict[str, Any]]:
    """Records as rows for `add_rows`. Needs no session: many records can be checked before the database is locked.

    Args:
        records: as `add_tasks` takes them.
        overlap: the same.
        source: the same.

    Raises:
        Invalid: as `add_tasks` does.
    """
    return [_row(record, record.get("where", f"record {n}"), overlap, source) for n, record in enumerate(records, 1)]


def add_rows(session: Session, actor: str, rows: Sequence[dict[str, Any]], source: str | None = None) -> Added:
    """Adds rows of `task_rows`, in their order, except those that already exist.

    Args:
        session: a session of `Database.write`.
        actor: who adds them, for the audit log.
        rows: the rows.
        source: where they come from, for the audit log.
    """
    new = sum(_insert(session, rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH))
    known = len(rows) - new
    audit.note(session, actor, "add tasks", "tasks", new=new, known=known, source=source)
    return Added(new, known)


def taken_in(session: Session, records: Iterable[Mapping[str, Any]]) -> list[Task]:
    """The tasks that records were added as, in their order; records that were not added are skipped.

    Raises:
        Invalid: as `add_tasks` does.
    """
    keys = [row["key"] for row in task_rows(records)]
    found: dict[str, Task] = {}
    for start in range(0, len(keys), _BATCH):
        batch = session.scalars(select(Task).where(Task.key.in_(keys[start : start + _BATCH])))
        found |= {task.key: task for task in batch}
    return [found[key] for key in keys if key in found]


def want_labels(session: Session, actor: str, wanted: Iterable[Task], overlap: int) -> None:
    """Has tasks labelled by at least `overlap` people; a higher overlap is not lowered."""
    raised = [task for task in wanted if task.overlap < overlap]
    for task in raised:
        task.overlap = overlap
        refresh_state(session, task)
    if raised:
        audit.note(session, actor, "raise overlap", "tasks", tasks=len(raised), overlap=overlap)


def find_task(session: Session, task_id: int) -> Task:
    """A task by id.

    Raises:
        NotFound: if there is none.
    """
    task = session.get(Task, task_id) if 0 < task_id < 2**31 else None
    if task is None:
        raise NotFound(f"there is no task {task_id}")
    return task


def set_gold(session: Session, actor: str, task: Task, ranks: Sequence[int] | None) -> None:
    """Makes a task a question with a known answer, or an ordinary one again."""
    if ranks is not None and (task.kind == "demonstration" or len(ranks) != len(task.completions)):
        raise Invalid(f"task {task.id} cannot have {len(ranks)} gold ranks")
    task.gold = None if ranks is None else list(ranks)
    refresh_state(session, task)
    audit.note(session, actor, "set gold", f"task {task.id}", ranks=task.gold)


def decide(session: Session, actor: str, task: Task, decision: str) -> None:
    """The owner's decision on a task, usually a flagged one: "release" it to the labelers or "withdraw" it.

    Raises:
        Invalid: for another decision.
    """
    if decision not in ("release", "withdraw"):
        raise Invalid(f"{decision[:40]!r} is not a decision", expected="release or withdraw")
    for flag in session.scalars(select(Flag).where(Flag.task_id == task.id, Flag.decision.is_(None))):
        flag.decision, flag.decided_at = decision, time.time()
    task.state = "withdrawn" if decision == "withdraw" else "open"
    refresh_state(session, task)
    audit.note(session, actor, decision, f"task {task.id}")


def refresh_state(session: Session, task: Task) -> None:
    """Updates whether labels are still wanted. The caller holds the task's row, if the database locks rows."""
    if task.state not in IN_USE:
        return
    if task.gold is not None:
        task.state = "gold"
        return
    session.flush()
    query = select(func.count()).where(Assignment.task_id == task.id, Assignment.state == "done")
    done = session.scalar(query) or 0
    task.state = "full" if done >= task.overlap else "open"


def _insert(session: Session, batch: Sequence[dict[str, Any]]) -> int:
    """Inserts a batch, skipping what already exists; returns how many were new."""
    there = set(session.scalars(select(Task.key).where(Task.key.in_([row["key"] for row in batch]))))
    fresh: dict[str, dict[str, Any]] = {}
    for row in batch:
        if row["key"] not in there:
            fresh.setdefault(row["key"], row)
    if fresh:
        session.execute(insert(Task), list(fresh.values()))
    return len(fresh)


def _row(record: Mapping[str, Any], where: str, overlap: int, source: str | None) -> dict[str, Any]:
    """A record as the columns of a `Task`."""
    kind = record.get("kind")
    if kind not in KINDS:
        raise Invalid(f"found {kind!r}", where=f"{where}: kind", expected=f"one of {', '.join(KINDS)}")
    completions = _completions(record, kind, where)
    policies = record.get("policies")
    policies = [policies] * len(completions) if policies is None or isinstance(policies, str) else list(policies)
    if len(policies) != len(completions) or not all(name is None or isinstance(name, str) for name in policies):
        raise Invalid("found another type or length", where=f"{where}: policies", expected="a name for each completion")
    gold = record.get("gold")
    if gold is not None:
        _check_ranks(gold, len(completions), f"{where}: gold")
    row = {
        "kind": kind,
        "prompt": _prompt(record, where),
        "completions": completions,
        "policies": policies,
        "gold": gold,
        "use_case": _name(record, "use_case", where),
        "customer": _name(record, "user", where),
        "round": _whole(record, "round", where, None, 0, _MOST),
        "source": source,
        "extra": dict(record.get("extra") or {}),
        "overlap": _whole(record, "overlap", where, overlap, 1, 1000),
        "priority": _whole(record, "priority", where, 0, -_MOST, _MOST),
        "state": "open" if gold is None else "gold",
        "created_at": time.time(),
    }
    content = [row[name] for name in ("kind", "prompt", "completions", "policies", "round")]
    try:
        key = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
        json.dumps(row["extra"], ensure_ascii=False).encode()
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise Invalid(
            f"the text cannot be stored: {error}", where=where, expected="valid Unicode characters"
        ) from error
    return row | {"key": key}


def _completions(record: Mapping[str, Any], kind: str, where: str) -> list[str]:
    completions = record.get("completions") or []
    if kind == "demonstration":
        if completions:
            raise Invalid(
                "found completions", where=where, expected="no completions: a labeler writes the demonstration"
            )
        return []
    expected = f"{MIN_OUTPUTS} to {MAX_OUTPUTS} texts"
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise Invalid("found another type", where=f"{where}: completions", expected=expected)
    if not MIN_OUTPUTS <= len(completions) <= MAX_OUTPUTS:
        raise Invalid(f"found {len(completions)}", where=f"{where}: completions", expected=expected)
    return list(completions)


def _prompt(record: Mapping[str, Any], where: str) -> str | list[dict[str, str]]:
    """The prompt, valid for training, which reads the exported labels."""
    try:
        return Fields(dict(record), where).prompt()
    except UserError as error:
        raise Invalid(error.what, where=error.where, expected=error.expected) from error


def _check_ranks(ranks: Any, count: int, where: str) -> None:
    whole = isinstance(ranks, list) and all(isinstance(r, int) and not isinstance(r, bool) for r in ranks)
    if not whole or count == 0 or len(ranks) != count or min(ranks) != 1 or max(ranks) > count:
        expected = f"{count} ranks from 1 (best), equal for a tie" if count else "no ranks: this is a demonstration"
        raise Invalid(f"found {ranks!r}"[:80], where=where, expected=expected)


def _name(record: Mapping[str, Any], field: str, where: str) -> str | None:
    value = record.get(field)
    return None if value is None else text(value, f"{where}: {field}")


def _whole(record: Mapping[str, Any], field: str, where: str, default: int | None, low: int, high: int) -> Any:
    value = default if record.get(field) is None else record[field]
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        expected = f"a whole number from {low} to {high}"
        raise Invalid(f"found {value!r}"[:80], where=f"{where}: {field}", expected=expected)
    return value

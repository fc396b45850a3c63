"""Rows of files as tasks, and labels as rows of files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy.orm import Session

from instructlit.files import json_lines
from instructlit.labelling.questions import KINDS
from instructlit.labelling.records import label_records, label_row
from instructlit.labelling.refusals import Invalid

_OURS = ("prompt", "completions", "use_case", "user", "round", "overlap", "priority")
_POLICIES = ("policies", "policy", "models")
_LABELS = ("ranks", "ratings", "flags", "labeler", "completion", "kind")
_KNOWN = frozenset((*_OURS, *_POLICIES, *_LABELS))


def task_record(row: Mapping[str, Any], where: str, kind: str, gold: bool, round_: int | None = None) -> dict[str, Any]:
    """A row as a record for `tasks.add_tasks`: its known fields, and all other fields as `extra`.

    Args:
        row: with `prompt`, `completions` (except for demonstrations), optional `policy` (one, or one per completion),
            `use_case`, `user`, `round`, `overlap`, `priority`.
        where: file and line, for messages.
        kind: the kind of task.
        gold: whether the row's `ranks` are the correct answer.
        round_: the round of rows without one.
    """
    record: dict[str, Any] = {name: row[name] for name in _OURS if row.get(name) is not None}
    if kind == "demonstration":
        record.pop("completions", None)
    elif policies := next((row[name] for name in _POLICIES if row.get(name) is not None), None):
        record["policies"] = policies
    if gold:
        if "ranks" not in row:
            raise Invalid("found no ranks", where=where, expected="the correct `ranks`, as the rows are gold questions")
        record["gold"] = row["ranks"]
    record["extra"] = {name: value for name, value in row.items() if name not in _KNOWN}
    record.setdefault("round", round_)
    return record | {"kind": kind, "where": where}


def parsed_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON Lines, each with its location.

    Raises:
        Invalid: if a line is not a JSON object, or there is no line.
    """
    empty = True
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise Invalid("this line is not JSON", where=where, expected="one JSON object per line, UTF-8") from error
        if not isinstance(row, dict):
            raise Invalid("this line is not an object", where=where, expected="one JSON object per line")
        empty = False
        yield where, row
    if empty:
        raise Invalid("found no rows", where=name, expected="one JSON object per line")


def exported(session: Session, kind: str, gold: bool = False) -> Iterator[str]:
    """The labels of a kind as JSON Lines."""
    if kind not in KINDS:
        raise Invalid(f"there is no kind {kind[:40]!r}", expected=", ".join(KINDS))
    yield from json_lines(map(label_row, label_records(session, [kind], gold=gold)))

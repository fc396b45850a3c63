"""Pairs in TRL's format: `prompt`, `chosen`, `rejected`, as text or as messages."""

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

from instructlit.data.formats import read_records
from instructlit.labels.other_tools import label_on, task_from
from instructlit.labels.records import Label, LabelKind, Task
from instructlit.types import Comparison


def to_pairs(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every pair of a comparison row that is not a tie; conversational if the prompt is messages."""
    for row in rows:
        ranked = sorted(zip(row["ranks"], row["completions"], strict=True), key=lambda one: one[0])
        for (better, chosen), (worse, rejected) in combinations(ranked, 2):
            if better != worse:
                yield {"prompt": row["prompt"], "chosen": _as(row, chosen), "rejected": _as(row, rejected)}


def from_pairs(rows: Iterable[tuple[str, dict[str, Any]]], labeler: str) -> Iterator[Label]:
    """Preference rows as labels of two completions.

    Args:
        rows: the location of each, and the row.
        labeler: the labeler, if a row does not give it.

    Raises:
        UserError: if a row is not a preference.
    """
    for where, row in rows:
        record = _pair(row, where)
        task = _asked(record, where)
        ranks = [rank for _, rank in sorted(zip(record.completions, record.ranks, strict=True))]
        yield label_on(task, record.labeler or labeler, where, ranks=ranks)


def pair_task(row: dict[str, Any], where: str, kind: LabelKind | None = None) -> Task:
    """A pair as a task: which completion was preferred is left out.

    Args:
        row: the row.
        where: its location, for messages.
        kind: the kind of task; a comparison if not given.

    Raises:
        UserError: if a row is not a preference.
    """
    return _asked(_pair(row, where), where, kind)


def _pair(row: dict[str, Any], where: str) -> Comparison:
    (record,) = read_records(row, where, "comparison", "preference")[1]
    assert isinstance(record, Comparison)
    return record


def _asked(record: Comparison, where: str, kind: LabelKind | None = None) -> Task:
    """The task of a pair. Its completions are sorted by their text, so that the order reveals nothing."""
    asked = {"prompt": record.prompt, "completions": sorted(record.completions)}
    return task_from(asked, None, {"kind": kind, "use_case": record.use_case, "user": record.user}, where)


def _as(row: dict[str, Any], text: str) -> Any:
    return text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]

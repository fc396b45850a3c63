"""Argilla's JSON: records as `dataset.records.to_json` writes them and `from_json` reads them (Argilla 2).

A record has `fields` (the prompt and the completions by name) and, by question, the `responses` of its users. A ranking
names the fields of completions, the best first. If two are tied, the form with ranks of Argilla's HTTP interface is
written, `{"value": ..., "rank": ...}`, since a plain list has no ties; both are read.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from instructlit.errors import UserError
from instructlit.labels.export import aligned
from instructlit.labels.other_tools import COMPLETION, completion_names, label_on, rating_name, task_from
from instructlit.labels.records import Label, LabelKind, Task

RANKING, DEMONSTRATION = "ranking", "demonstration"


def to_argilla(tasks: Iterable[Task], labels: Iterable[Label] = ()) -> Iterator[dict[str, Any]]:
    """One record per task, with its labels as responses. Policies and scores are left out: Argilla shows metadata.

    A skipped label is not written; a record cannot hold flags and times.
    """
    given: dict[str, list[Label]] = {}
    for label in labels:
        if label.skipped is None:
            given.setdefault(label.task, []).append(label)
    for task in tasks:
        names = completion_names(task.completions)
        responses: dict[str, list[dict[str, Any]]] = {}
        for label in given.get(task.task, ()):
            for question, value in _answers(label, task, names).items():
                responses.setdefault(question, []).append({"value": value, "user_id": label.labeler})
        told = {"kind": task.kind, "round": task.round, "use_case": task.use_case, "user": task.user}
        yield {
            "id": task.task,
            "fields": {"prompt": task.prompt, **dict(zip(names, task.completions, strict=True))},
            "metadata": {name: value for name, value in told.items() if value is not None},
            "suggestions": {},
            "responses": responses,
            "vectors": {},
        }


def from_argilla(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Label]:
    """The labels in exported records: rankings, or demonstrations if a record has no completions.

    The ranking question is the one whose value is a list of completion names; ratings come from the questions
    `rating_1` and so on. Drafts and discarded responses, if the export contains them, are ignored.

    Raises:
        UserError: if a record's fields or responses cannot be parsed, with file and line.
    """
    for where, row in rows:
        task, names = _asked(row, where)
        for labeler, answers in _by_user(row, where).items():
            main = answers.get(RANKING if names else DEMONSTRATION)
            if main is None:
                continue
            if names:
                ranks = _ranks(main, names, f"{where}: responses.{RANKING}")
                yield label_on(task, labeler, where, ranks=ranks, ratings=_ratings(answers, len(names)))
            else:
                yield label_on(task, labeler, where, completion=main)


def argilla_task(row: dict[str, Any], where: str, kind: LabelKind | None = None) -> Task:
    """The task of a record, answered or not.

    Args:
        row: the record.
        where: its location, for messages.
        kind: the kind of task, if the record does not give it.

    Raises:
        UserError: if the record cannot be parsed, with file and line.
    """
    return _asked(row, where, kind)[0]


def _asked(row: dict[str, Any], where: str, kind: LabelKind | None = None) -> tuple[Task, list[str]]:
    """The task of a record, and the names of its completions there."""
    fields = row.get("fields")
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str | list):
        raise UserError("found no prompt", where=f"{where}: fields", expected="a field `prompt` and the completions")
    names = sorted((name for name in fields if COMPLETION.fullmatch(name)), key=lambda n: int(n.rpartition("_")[2]))
    told = row.get("metadata") or {}
    if not isinstance(told, dict):
        raise UserError(f"found {told!r:.60}", where=f"{where}: metadata", expected="an object")
    asked = {"prompt": fields["prompt"], "completions": [fields[name] for name in names]}
    return task_from(asked, row.get("id"), {"kind": kind, **told}, where), names


def _answers(label: Label, task: Task, names: list[str]) -> dict[str, Any]:
    """A label as the values of Argilla's questions."""
    if label.kind == "demonstration":
        return {DEMONSTRATION: label.completions[0]}
    ordered = sorted(zip(aligned(label, task, label.ranks or []), names, strict=True))
    tied = len({rank for rank, _ in ordered}) < len(ordered)
    ranking = [{"value": name, "rank": rank} if tied else name for rank, name in ordered]
    rated = zip(names, aligned(label, task, label.ratings or [None] * len(names)), strict=True)
    return {RANKING: ranking} | {rating_name(name): value for name, value in rated if value is not None}


def _by_user(row: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The values by question for each user."""
    found: dict[str, dict[str, Any]] = {}
    responses = row.get("responses") or {}
    if not isinstance(responses, dict):
        raise UserError(
            "found a list", where=f"{where}: responses", expected="responses by question, as `records.to_json` writes"
        )
    for question, given in responses.items():
        if not isinstance(given, list) or not all(isinstance(one, dict) and "value" in one for one in given):
            place = f"{where}: responses.{question}"
            raise UserError(
                f"found {given!r:.60}", where=place, expected="a list of objects with `value` and `user_id`"
            )
        for response in given:
            if response.get("status", "submitted") != "submitted":
                continue
            value = response["value"]
            is_ranking = isinstance(value, list) and any(COMPLETION.fullmatch(_name(entry)) for entry in value)
            found.setdefault(str(response.get("user_id")), {})[RANKING if is_ranking else question] = value
    return found


def _name(entry: Any) -> str:
    """The field that an entry of a list names: the client shows `-` for `_`."""
    return str(entry.get("value") if isinstance(entry, dict) else entry).replace("-", "_")


def _ranks(value: Any, names: list[str], where: str) -> list[int]:
    """Ranks by name, from a list with the best first or from values with ranks."""
    ranks: dict[str, int] = {}
    for place, entry in enumerate(value, start=1):
        ranks[_name(entry)] = entry.get("rank", place) if isinstance(entry, dict) else place
    if set(ranks) != set(names):
        raise UserError(
            f"the ranking contains {', '.join(sorted(ranks)) or 'nothing'}",
            where=where,
            expected=f"each of {', '.join(names)}, once",
        )
    order = sorted(set(ranks.values()))
    return [order.index(ranks[name]) + 1 for name in names]


def _ratings(answers: dict[str, Any], count: int) -> list[int | None] | None:
    ratings = [answers.get(f"rating_{number}") for number in range(1, count + 1)]
    return ratings if any(rating is not None for rating in ratings) else None

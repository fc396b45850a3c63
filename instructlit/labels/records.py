"""Tasks for labelers and the labels they give, as records and as JSON Lines.

A file of tasks is blind: which policy wrote a completion, whether it ended, and how a reward model scored it, are in a
separate key file next to it (`tasks.jsonl` and `tasks.key.jsonl`). The policies cannot be identified from the tasks
alone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from instructlit.data.fields import Fields
from instructlit.data.readers import open_source
from instructlit.data.sources import Source
from instructlit.data.splits import prompt_key
from instructlit.errors import UserError
from instructlit.files import write_rows
from instructlit.types import PromptText

LabelKind = Literal["comparison", "demonstration", "evaluation"]
KINDS = get_args(LabelKind)
V = TypeVar("V")

_HIDDEN = ("policy", "scores", "ended")
"""Fields of a task that no labeler may see."""


@dataclass(frozen=True)
class Task:
    """A task for a labeler: rank completions, write a demonstration, or compare named models without their names.

    Args:
        task: an id, which is the same for the same question.
        kind: "comparison" (trains a reward model), "evaluation" (compares models), "demonstration" (write an
            answer).
        prompt: what the completions answer.
        completions: 2 to 9, in the order shown; none for a demonstration.
        policy: the policy that wrote each; never shown.
        scores: a reward model's score of each; never shown.
        round: the round of the loop it belongs to, from 1.
        use_case: from the file of prompts.
        user: who sent the prompt.
        ended: whether each ended by itself, not at a length limit; None if all did, or if unknown.
    """

    task: str
    kind: LabelKind
    prompt: PromptText
    completions: list[str] = field(default_factory=list)
    policy: list[str] | None = None
    scores: list[float] | None = None
    round: int | None = None
    use_case: str | None = None
    user: str | None = None
    ended: list[bool] | None = None


@dataclass(frozen=True)
class Label:
    """One labeler's answer to a task.

    Args:
        task: the id of the task.
        kind: the kind of the task.
        prompt: the prompt of the task.
        labeler: who answered.
        completions: those of the task; for a demonstration, the one that was written.
        ranks: the rank of each completion: 1 is best, equal ranks are a tie.
        ratings: 1 (worst) to 7 of each completion; None if it was not rated.
        flags: yes/no metadata of each completion.
        policy: the policy that wrote each completion.
        round: the round of the loop.
        seconds: time on the task.
        skipped: why it was not answered.
        reported: what is wrong with the prompt itself, such as "private" or "harmful".
        use_case: the use case of the prompt.
        user: who sent the prompt.
        instructions: the version of the instructions that the labeler saw.
        ended: as in a `Task`.
    """

    task: str
    kind: LabelKind
    prompt: PromptText
    labeler: str
    completions: list[str] = field(default_factory=list)
    ranks: list[int] | None = None
    ratings: list[int | None] | None = None
    flags: list[dict[str, bool]] | None = None
    policy: list[str] | None = None
    round: int | None = None
    seconds: float | None = None
    skipped: str | None = None
    reported: list[str] = field(default_factory=list)
    use_case: str | None = None
    user: str | None = None
    instructions: int | None = None
    ended: list[bool] | None = None


def task_id(kind: str, prompt: PromptText, completions: Iterable[str], round: int | None = None) -> str:
    """An id derived from the question, 16 hex digits: adding the same task twice adds it once."""
    text = json.dumps([kind, prompt_key(prompt), list(completions), round], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def for_database(task: Task) -> dict[str, Any]:
    """A task in the form of the labelling database, which hides the policies from the labelers.

    The id has another field name there, because `task` may be a column of a user's rows.
    """
    told = {"kind": task.kind, "prompt": task.prompt, "completions": task.completions, "policies": task.policy}
    about = {"use_case": task.use_case, "user": task.user, "round": task.round}
    extra: dict[str, Any] = {"instructlit_task": task.task, "scores": task.scores}
    if task.ended is not None:
        extra["ended"] = task.ended
    return {name: value for name, value in {**told, **about, "extra": extra}.items() if value is not None}


def key_file(tasks: str | Path) -> Path:
    """The key file of a file of tasks, with policies and scores."""
    path = Path(tasks)
    return path.with_name(f"{path.stem}.key{path.suffix}")


def write_tasks(path: str | Path, tasks: Iterable[Task]) -> None:
    """Writes the tasks without the hidden fields, and the key file."""
    rows = [_row(task) for task in tasks]
    write_rows(path, ({k: v for k, v in row.items() if k not in _HIDDEN} for row in rows))
    hidden = [{"task": row["task"], **{k: row[k] for k in _HIDDEN if k in row}} for row in rows]
    write_rows(key_file(path), hidden)


def read_tasks(path: str | Path) -> list[Task]:
    """The tasks of a file, with the policies and scores of its key file if there is one.

    Raises:
        UserError: if a row is invalid, with file, line and field.
    """
    rows = list(read_rows(path))
    key = {row["task"]: row for _, row in read_rows(key_file(path))} if key_file(path).is_file() else {}
    tasks = [parse_task(row | {k: v for k, v in key.get(row.get("task"), {}).items() if k in _HIDDEN}, where)
             for where, row in rows]  # fmt: skip
    _check_once(tasks, path)
    return tasks


def write_labels(path: str | Path, labels: Iterable[Label]) -> None:
    """Writes labels as JSON Lines."""
    write_rows(path, map(_row, labels))


def read_labels(path: str | Path) -> list[Label]:
    """The labels of a file.

    Raises:
        UserError: if a row is invalid, with file, line and field.
    """
    return [parse_label(row, where) for where, row in read_rows(path)]


def with_policies(labels: Iterable[Label], tasks: Iterable[Task]) -> list[Label]:
    """Labels of blind tasks, completed from the tasks: id, policies, round, use case, user.

    What a task does not say, such as the policies if its key file is missing, stays as the label says it. A label is
    matched to its task by id, or by the question if another tool has assigned its own id. The completions of a label
    may be in another order than the task's. Labels of a round without any of the tasks are left out: a labelling
    database returns those of all rounds.

    Raises:
        UserError: if a label's task is not among `tasks`, or its completions differ.
    """
    tasks = list(tasks)
    known = {task.task: task for task in tasks} | {_question(task): task for task in tasks}
    rounds = {task.round for task in tasks}
    found = []
    for label in labels:
        if label.round is not None and None not in rounds and label.round not in rounds:
            continue
        task = known.get(label.task) or known.get(_question(label))
        if task is None:
            raise UserError("no such task", where=f"label of task {label.task!r}", expected="a task of the given file")
        hidden = {"policy": task.policy, "ended": task.ended} if task.kind != "demonstration" else {}
        if any(hidden.values()) and sorted(label.completions) != sorted(task.completions):
            raise UserError(
                "the label has different completions from its task",
                where=f"label of task {label.task!r} by {label.labeler!r}",
                expected="labels of this file of tasks",
            )
        told: dict[str, Any] = {"round": task.round, "use_case": task.use_case, "user": task.user}
        told |= {
            name: values and in_order(label.completions, task.completions, values) for name, values in hidden.items()
        }
        told = {name: value for name, value in told.items() if value is not None}
        if task.kind == "demonstration":
            told["policy"] = None
        found.append(replace(label, task=task.task, kind=task.kind, **told))
    return found


def in_order(wanted: Iterable[str], completions: Iterable[str], values: Iterable[V]) -> list[V]:
    """The values of completions, reordered; equal completions, as in evaluations, keep their relative order."""
    by_text: dict[str, list[V]] = {}
    for completion, value in zip(completions, values, strict=True):
        by_text.setdefault(completion, []).append(value)
    return [by_text[completion].pop(0) for completion in wanted]


def _question(asked: Task | Label) -> str:
    """The question of a task, independent of its id and of the order of the completions."""
    shown = [] if asked.kind == "demonstration" else sorted(asked.completions)
    return task_id("", asked.prompt, shown, asked.round)


def parse_task(row: dict[str, Any], where: str) -> Task:
    """A row as a task.

    Raises:
        UserError: naming `where` and the field.
    """
    given = Fields(row, where)
    kind = _kind(given)
    completions = [] if kind == "demonstration" else given.texts("completions", at_least=2)
    return Task(
        task=_text(given, "task"),
        kind=kind,
        prompt=given.prompt(),
        completions=completions,
        policy=_texts(given, "policy", len(completions)),
        scores=_numbers(given, "scores", len(completions)),
        ended=given.ended(len(completions)) if row.get("ended") is not None else None,
        round=_count(given, "round"),
        use_case=given.name("use_case"),
        user=given.name("user"),
    )


def parse_label(row: dict[str, Any], where: str) -> Label:
    """A row as a label. `policies` is read as `policy`, and `completion` as the one of a demonstration.

    Raises:
        UserError: naming `where` and the field.
    """
    row = {"policy": row.get("policies"), **row}
    if "completion" in row and row.get("kind", "demonstration") == "demonstration":
        row |= {"kind": "demonstration", "completions": [row["completion"]], "policy": None}
    given = Fields(row, where)
    kind, skipped = _kind(given), given.name("skipped")
    at_least = 1 if kind == "demonstration" else 2
    completions = given.texts("completions", at_least) if skipped is None or "completions" in given else []
    k = len(completions)
    timed = [row["seconds"]] if row.get("seconds") is not None else None
    seconds = _numbers(Fields({"seconds": timed}, where), "seconds", 1)
    return Label(
        task=_text(given, "task"),
        kind=kind,
        prompt=given.prompt(),
        labeler=_text(given, "labeler"),
        completions=completions,
        ranks=given.ranks(k) if kind != "demonstration" and skipped is None else None,
        ratings=_ratings(given, k),
        flags=given.flags(k) if row.get("flags") is not None else None,
        policy=_texts(given, "policy", k),
        ended=given.ended(k) if row.get("ended") is not None else None,
        round=_count(given, "round"),
        seconds=seconds[0] if seconds else None,
        skipped=skipped,
        reported=_texts(given, "reported", None) or [],
        use_case=given.name("use_case"),
        user=given.name("user"),
        instructions=_count(given, "instructions"),
    )


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a data file with its location, for messages."""
    for rows in open_source(Source(str(path)), str(path)):
        for index in range(len(rows)):
            yield rows.where(index), rows[index]


def _row(record: Task | Label) -> dict[str, Any]:
    """The fields that are not empty."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: value for name, value in values.items() if value is not None and value != []}


def _check_once(tasks: Iterable[Task], path: str | Path) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.task in seen:
            raise UserError(
                f"task {task.task!r} occurs twice", where=str(path), expected="a different id for each task"
            )
        seen.add(task.task)


def _kind(given: Fields) -> LabelKind:
    kind = given.row.get("kind", "comparison")
    if kind not in KINDS:
        given.wrong("kind", f"found {kind!r}", f"one of {', '.join(KINDS)}")
    return cast(LabelKind, kind)


def _text(given: Fields, name: str) -> str:
    given.value(name, "text")
    return given.name(name) or given.text(name, blank=False)


def _texts(given: Fields, name: str, length: int | None) -> list[str] | None:
    value = given.row.get(name)
    if value is None:
        return None
    right = isinstance(value, list) and all(isinstance(v, str) for v in value)
    if not right or (length is not None and len(value) != length):
        given.wrong(name, f"found {value!r:.60}", f"a list of {length} texts" if length else "a list of texts")
    return list(value)


def _numbers(given: Fields, name: str, length: int) -> list[float] | None:
    value = given.row.get(name)
    if value is None:
        return None
    right = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not right or len(value) != length:
        given.wrong(name, f"found {value!r:.60}", "a number" if length == 1 else f"{length} numbers")
    return [float(v) for v in value]


def _ratings(given: Fields, k: int) -> list[int | None] | None:
    value = given.row.get("ratings")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != k:
        given.wrong("ratings", f"found {value!r:.60}", f"{k} ratings, null for no rating")
    given_ones = [rating for rating in value if rating is not None]
    Fields({"ratings": given_ones}, given.where).ratings(len(given_ones))
    return list(value)


def _count(given: Fields, name: str) -> int | None:
    value = given.row.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        given.wrong(name, f"found {value!r:.60}", "a whole number")
    return value

"""Label Studio's JSON: tasks with `data` and `annotations`, as its importer reads and its JSON export writes them.

Completions are the items of a `List`; a `Ranker` with one `Bucket` per rank orders them, so that ties are possible. A
ranker without buckets (a plain order) and a `Pairwise` choice are read as well.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any
from xml.sax.saxutils import quoteattr

from instructlit.errors import UserError
from instructlit.labels.export import aligned
from instructlit.labels.other_tools import completion_names, label_on, rating_name, task_from
from instructlit.labels.records import Label, LabelKind, Task
from instructlit.rubric import BEST, MAX_OUTPUTS

_UNPLACED = "_"
"""The bucket in which Label Studio leaves items that were not moved."""


def labeling_config(most: int = MAX_OUTPUTS) -> str:
    """The labelling interface (XML) for a project with such tasks.

    Args:
        most: completions of the largest task, which is the number of ranks and ratings.
    """
    buckets = "".join(
        f"    <Bucket name={quoteattr(f'rank_{rank}')} title={quoteattr(f'Rank {rank}')}/>\n"
        for rank in range(1, most + 1)
    )
    ratings = "".join(
        f'  <Rating name={quoteattr(f"rating_{number}")} toName="prompt" maxRating="{BEST}"/>\n'
        for number in range(1, most + 1)
    )
    return (
        '<View>\n  <Text name="prompt" value="$prompt"/>\n  <List name="items" value="$items" title="Answers"/>\n'
        f'  <Ranker name="ranking" toName="items">\n{buckets}  </Ranker>\n{ratings}'
        '  <TextArea name="demonstration" toName="prompt" rows="8"/>\n</View>\n'
    )


def to_label_studio(tasks: Iterable[Task], labels: Iterable[Label] = ()) -> Iterator[dict[str, Any]]:
    """One Label Studio task per task, with the labels on it as annotations. Policies and scores are left out."""
    given: dict[str, list[Label]] = {}
    for label in labels:
        given.setdefault(label.task, []).append(label)
    for task in tasks:
        names = completion_names(task.completions)
        items = [{"id": name, "title": "", "body": text} for name, text in zip(names, task.completions, strict=True)]
        told = {"kind": task.kind, "round": task.round, "use_case": task.use_case, "user": task.user}
        data = {"task": task.task, "prompt": _shown(task), "messages": task.prompt, "items": items}
        yield {
            "data": data | {name: value for name, value in told.items() if value is not None},
            "annotations": [_annotation(label, task, names) for label in given.get(task.task, ())],
        }


def from_label_studio(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Label]:
    """The labels in exported tasks, one per annotation; a cancelled annotation is a skipped task.

    Raises:
        UserError: if a task or annotation cannot be parsed, with file and line.
    """
    for where, row in rows:
        task, names = _asked(row, where)
        for number, annotation in enumerate(row.get("annotations") or []):
            place = f"{where}: annotations[{number}]"
            given = _results(annotation, place)
            results = {result["type"]: result["value"] for result in given}
            by_name = {result["from_name"]: result["value"] for result in given}
            answer: dict[str, Any] = {"ratings": _ratings(by_name, names), "seconds": annotation.get("lead_time")}
            if annotation.get("was_cancelled"):
                answer["skipped"] = "cancelled"
            elif task.kind == "demonstration":
                answer["completion"] = "\n".join(results.get("textarea", {}).get("text", [])).strip()
                if not answer["completion"]:
                    raise UserError("found no text", where=place, expected="a result of type textarea")
            else:
                answer["ranks"] = _ranks(results, names, place)
            yield label_on(task, _who(annotation), place, **answer)


def label_studio_task(row: dict[str, Any], where: str, kind: LabelKind | None = None) -> Task:
    """A Label Studio task as a task of ours, annotated or not.

    Args:
        row: the task.
        where: its location, for messages.
        kind: the kind of task, if the Label Studio task does not give it.

    Raises:
        UserError: if the task cannot be parsed, with file and line.
    """
    return _asked(row, where, kind)[0]


def _asked(row: dict[str, Any], where: str, kind: LabelKind | None = None) -> tuple[Task, list[str]]:
    """A Label Studio task as a task of ours, and the names of its completions there."""
    data = row.get("data")
    if not isinstance(data, dict) or "prompt" not in data:
        raise UserError("found no prompt", where=f"{where}: data", expected="`prompt`, and `items` to order")
    items = _items(data, f"{where}: data")
    asked = {"prompt": data.get("messages", data["prompt"]), "completions": list(items.values())}
    return task_from(asked, data.get("task"), {"kind": kind, **data}, where), list(items)


def _annotation(label: Label, task: Task, names: list[str]) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    if label.kind == "demonstration" and label.completions:
        results.append(_result("demonstration", "prompt", "textarea", {"text": label.completions}))
    elif label.ranks is not None:
        buckets: dict[str, list[str]] = {}
        for rank, name in sorted(zip(aligned(label, task, label.ranks), names, strict=True)):
            buckets.setdefault(f"rank_{rank}", []).append(name)
        results.append(_result("ranking", "items", "ranker", {"ranker": buckets}))
        ratings = aligned(label, task, label.ratings or [None] * len(names))
        for name, rating in zip(names, ratings, strict=True):
            if rating is not None:
                results.append(_result(rating_name(name), "prompt", "rating", {"rating": rating}))
    return {
        "completed_by": label.labeler,
        "was_cancelled": label.skipped is not None,
        "lead_time": label.seconds,
        "result": results,
    }


def _result(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


def _shown(task: Task) -> str:
    """The prompt as text for the `Text` tag; the messages themselves go along in `messages`."""
    if isinstance(task.prompt, str):
        return task.prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in task.prompt)


def _results(annotation: Any, where: str) -> list[dict[str, Any]]:
    """The values of an annotation by control; relations between regions are ignored."""
    found = annotation.get("result") if isinstance(annotation, dict) else None
    if not isinstance(found, list) or not all(isinstance(result, dict) for result in found):
        raise UserError(f"found {annotation!r:.60}", where=where, expected="an object with a list `result`")
    return [result for result in found if isinstance(result.get("value"), dict) and {"type", "from_name"} <= {*result}]


def _items(data: dict[str, Any], where: str) -> dict[str, str]:
    """Id to text of the completions: those of a list, or the two of a pairwise project."""
    items = data.get("items")
    if items is None:
        pair = [data.get(name) for name in ("text1", "text2")]
        return {"left": str(pair[0]), "right": str(pair[1])} if None not in pair else {}
    if not isinstance(items, list) or not all(isinstance(item, dict) and "id" in item for item in items):
        raise UserError(
            f"found {items!r:.60}", where=f"{where}.items", expected="a list of objects with `id`, `title` and `body`"
        )
    found = {str(item["id"]): item.get("body") or item.get("title") or "" for item in items}
    if len(found) < len(items):
        raise UserError("an id occurs twice", where=f"{where}.items", expected="a different id for each item")
    return found


def _ranks(results: dict[str, Any], names: list[str], where: str) -> list[int]:
    if "pairwise" in results:
        better = results["pairwise"].get("selected")
        if better not in ("left", "right") or len(names) != 2:
            raise UserError(f"`selected` is {better!r}", where=where, expected="left or right, of two texts")
        return [1, 2] if better == "left" else [2, 1]
    value = results.get("ranker", {}).get("ranker")
    groups: list[list[str]]
    if isinstance(value, list):
        groups = [[name] for name in value]
    elif isinstance(value, dict):
        buckets = {name: ids for name, ids in value.items() if name != _UNPLACED and ids}
        groups = [buckets[name] for name in sorted(buckets, key=lambda name: _bucket_rank(name, where))]
    else:
        raise UserError("found no ranking", where=where, expected="a result of type ranker or pairwise")
    groups = [[str(name) for name in group] for group in groups]  # as the items' ids
    placed = [name for group in groups for name in group]
    if sorted(placed) != sorted(names):
        missing = ", ".join(sorted(set(names) - set(placed))) or "none, but an item occurs twice"
        raise UserError(f"not ranked: {missing}", where=where, expected="every item in one bucket")
    return [next(rank for rank, group in enumerate(groups, start=1) if name in group) for name in names]


def _bucket_rank(name: str, where: str) -> int:
    number = re.search(r"\d+$", name)
    if number is None:
        raise UserError(
            f"found the bucket {name!r}", where=where, expected="buckets that end in their rank, as in rank_1"
        )
    return int(number.group())


def _ratings(by_name: dict[str, Any], names: list[str]) -> list[int | None] | None:
    found = [by_name.get(f"rating_{number}", {}).get("rating") for number in range(1, len(names) + 1)]
    return found if any(rating is not None for rating in found) else None


def _who(annotation: dict[str, Any]) -> str:
    """The labeler: Label Studio gives an id, or an object with an e-mail address."""
    by = annotation.get("completed_by")
    if isinstance(by, dict):
        by = by.get("email") or by.get("id")
    return str(by)

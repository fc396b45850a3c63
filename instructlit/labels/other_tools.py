"""What the formats of other tools have in common: names of completions and ratings, and conversion to our tasks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from instructlit.labels.records import Label, Task, parse_label, parse_task, task_id

COMPLETION = re.compile(r"(?:completion|response)_\d+")


def completion_names(completions: Sequence[str]) -> list[str]:
    """`completion_1` and so on."""
    return [f"completion_{number}" for number in range(1, len(completions) + 1)]


def rating_name(completion: str) -> str:
    """The question that rates a completion: `rating_2` for `completion_2`."""
    return f"rating_{completion.rpartition('_')[2]}"


def task_from(asked: Mapping[str, Any], own_id: Any, told: Mapping[str, Any], where: str) -> Task:
    """A task from another tool's file, checked like those of our own files.

    Args:
        asked: `prompt` and `completions`.
        own_id: the id that the tool uses for it, if any; otherwise one is derived from the question.
        told: `kind`, `round`, `use_case` and `user`, if the file gives them. The default kind is a comparison with
            completions, and a demonstration without.
        where: its location, for messages.

    Raises:
        UserError: naming `where` and the field.
    """
    kind = told.get("kind") or ("comparison" if asked["completions"] else "demonstration")
    about = {name: told.get(name) for name in ("round", "use_case", "user")}
    task = parse_task({**asked, **about, "kind": kind, "task": str(own_id or "none")}, where)
    return task if own_id else replace(task, task=task_id(task.kind, task.prompt, task.completions))


def label_on(task: Task, labeler: str, where: str, **answer: Any) -> Label:
    """A label on a task from another tool's file, checked like those of our own files.

    Args:
        task: what was asked.
        labeler: who answered.
        where: its location, for messages.
        answer: further fields of a row of labels; the completions are the task's unless given.

    Raises:
        UserError: naming `where` and the field.
    """
    asked = {name: getattr(task, name) for name in ("task", "kind", "prompt", "round", "use_case", "user")}
    shown = {"completions": task.completions} if task.completions else {}
    return parse_label({**asked, **shown, "labeler": labeler, **answer}, where)

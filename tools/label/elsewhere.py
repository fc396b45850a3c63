"""Tasks from the files of other tools."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from instructlit.errors import UserError, counted
from instructlit.labelling.questions import Kind
from instructlit.labels import Task, write_tasks
from instructlit.labels.argilla import argilla_task
from instructlit.labels.label_studio import label_studio_task
from instructlit.labels.records import read_rows
from instructlit.labels.trl import pair_task
from instructlit.tools.outputs import check_output

_READERS = {"argilla": argilla_task, "label_studio": label_studio_task, "trl": pair_task}


def tasks_of(source: str, file: str, kind: Kind | None, round: int | None) -> Iterator[tuple[str, Task]]:
    """The tasks of a file, and the location of each.

    Args:
        source: the tool whose format it is.
        file: the file.
        kind: the kind of tasks for which the file gives none.
        round: the round of tasks for which the file gives none.

    Raises:
        UserError: if a row cannot be parsed, with file and line.
    """
    for where, row in read_rows(file):
        task = _READERS[source](row, where, kind)
        yield where, task if task.round is not None else replace(task, round=round)


def write_tasks_of(source: str, files: Sequence[str], kind: Kind | None, round: int | None, output: str) -> None:
    """Writes the tasks of some files as one file of tasks, without duplicates.

    Raises:
        UserError: if a row cannot be parsed, or two tasks have the same id.
    """
    if source == "native":
        raise UserError(
            "rows without --source can only be imported into a database", where="--output", expected="a --source"
        )
    check_output(output, *files)
    found: dict[str, Task] = {}
    count = 0
    for where, task in (one for file in files for one in tasks_of(source, file, kind, round)):
        count += 1
        if found.setdefault(task.task, task) != task:
            raise UserError(
                f"{task.task!r} is also the id of another task", where=where, expected="a different id for each task"
            )
    if not found:
        raise UserError("found no task", where=", ".join(files), expected="tasks to label")
    write_tasks(output, found.values())
    print(
        f"{output}: {counted(len(found), 'task')}"
        + (f", {counted(count - len(found), 'duplicate')}" if count > len(found) else "")
    )

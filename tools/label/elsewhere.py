"""Tasks out of the files of other tools."""

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
    """The tasks of a file, and where each stands.

    Args:
        source: whose format it is.
        file: the file.
        kind: that of tasks for which the file tells none.
        round: the same.

    Raises:
        UserError: a row that cannot be understood, by file and line.
    """
    for where, row in read_rows(file):
        task = _READERS[source](row, where, kind)
        yield where, task if task.round is not None else replace(task, round=round)


def write_tasks_of(source: str, files: Sequence[str], kind: Kind | None, round: int | None, output: str) -> None:
    """Write the tasks of some files as one file of ours, each once.

    Raises:
        UserError: a row that cannot be understood, or two tasks under one id.
    """
    if source == "native":
        raise UserError("rows of no source go into a database", where="--output", expected="a --source")
    check_output(output, *files)
    found: dict[str, Task] = {}
    count = 0
    for where, task in (one for file in files for one in tasks_of(source, file, kind, round)):
        count += 1
        if found.setdefault(task.task, task) != task:
            raise UserError(f"{task.task!r} is the id of another task too", where=where, expected="an id for each task")
    if not found:
        raise UserError("no task in it", where=", ".join(files), expected="tasks to label")
    write_tasks(output, found.values())
    print(
        f"{output}: {counted(len(found), 'task')}"
        + (f", {count - len(found)} there twice" if count > len(found) else "")
    )

"""`instructlit labels import`: labels from other tools as a file of labels, or in the labelling database."""

from collections.abc import Iterator
from typing import Any, Literal

from instructlit.errors import UserError, counted
from instructlit.labels import Label, read_tasks, write_labels
from instructlit.labels.export import aligned, usable
from instructlit.labels.records import for_database, parse_label, read_rows, with_policies
from instructlit.tools.labels.sources import tasks_of
from instructlit.tools.outputs import check_output


def labels_import(
    files: list[str],
    source: Literal["argilla", "label_studio", "trl", "native"],
    output: str | None = None,
    tasks: list[str] | None = None,
    labeler: str = "imported",
    *,
    database: str | None = None,
) -> None:
    """Import labels from another tool: write them as labels (JSON Lines), or add them to a labelling database.

    Imported labels appear in the database together with those given there: with their tasks, under their labelers'
    names, in the dashboard and in exports. A label that already exists there is not changed. Skipped labels and those
    of a reported prompt are left out; if a labeler labelled a task twice, the later label counts.

    Args:
        files: Argilla's `records.to_json`, Label Studio's JSON export, TRL pairs (chosen and rejected), or our own
            labels.
        source: the format of the files.
        output: file of labels to write; `labels.jsonl` if no database is given.
        tasks: the files of tasks that were labelled there, with their key files next to them, which give the policies.
        labeler: name of the labeler, if the format does not give it (TRL).
        database: labelling database: a file, or the URL of a PostgreSQL server; `instructlit label` creates one.
    """
    from instructlit.labels.argilla import from_argilla
    from instructlit.labels.label_studio import from_label_studio
    from instructlit.labels.trl import from_pairs

    target = "labels.jsonl" if output is None and database is None else output
    if target is not None:
        check_output(target, *files, *(tasks or []))
    rows = [row for file in files for row in read_rows(file)]
    if source == "argilla":
        labels = list(from_argilla(rows))
    elif source == "label_studio":
        labels = list(from_label_studio(rows))
    elif source == "trl":
        labels = list(from_pairs(rows, labeler))
    else:
        labels = [parse_label(row, where) for where, row in rows]
    if not labels:
        raise UserError(
            "found no labels",
            where=", ".join(files),
            expected="tasks that somebody has labelled",
            fix=f"`instructlit label import --source {source}` imports tasks without labels"
            if source != "native"
            else None,
        )
    known = tasks_of(labels)
    if tasks:
        given = [task for file in tasks for task in read_tasks(file)]
        labels, known = with_policies(labels, given), {task.task: task for task in given}
    if database is not None:
        _put_into(database, labels, known, ", ".join(files))
    if target is not None:
        write_labels(target, labels)
        asked, people = ({getattr(label, name) for label in labels} for name in ("task", "labeler"))
        told = f"{counted(len(labels), 'label')} of {counted(len(asked), 'task')} by {counted(len(people), 'labeler')}"
        print(f"{target}: {told}")


def _put_into(database: str, labels: list[Label], known: dict[str, Any], source: str) -> None:
    from instructlit.labelling.audit import COMMAND_LINE
    from instructlit.labelling.database import Database
    from instructlit.labelling.intake import add_labels

    kept, left_out = usable(labels)
    opened = Database(database, create=False)
    with opened.write() as session:
        added = add_labels(session, COMMAND_LINE, _records(kept, known), source)
    opened.close()
    print(f"{opened}: {counted(added.new, 'new label')}, {added.known} already labelled there by the same labeler")
    for reason, count in sorted(left_out.items()):
        print(f"left out: {count} {reason}")


def _records(labels: list[Label], known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Labels as records for the database, lists in the order of the task's completions."""
    for label in labels:
        task = known[label.task]
        record = {"task": for_database(task), "labeler": label.labeler, "seconds": label.seconds}
        record["where"] = f"label of task {label.task!r} by {label.labeler!r}"
        if label.kind == "demonstration":
            record["completion"] = label.completions[0]
        else:
            lists = {"ranks": label.ranks, "ratings": label.ratings, "flags": label.flags}
            record |= {name: aligned(label, task, each) for name, each in lists.items() if each is not None}
        yield record

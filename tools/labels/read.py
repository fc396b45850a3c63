"""`instructlit labels import`: labels from other tools as a file of our own."""

from typing import Literal

from instructlit.errors import UserError
from instructlit.labels import read_tasks, write_labels
from instructlit.labels.records import parse_label, read_rows, with_policies


def labels_import(
    files: list[str],
    source: Literal["argilla", "label_studio", "trl", "native"],
    output: str = "labels.jsonl",
    tasks: list[str] | None = None,
    labeler: str = "imported",
) -> None:
    """Read what was labelled in another tool and write it as labels (JSON Lines).

    Args:
        files: Argilla's `records.to_json`, Label Studio's JSON export, TRL pairs (chosen and rejected), or labels of
            ours.
        source: whose format it is.
        output: file of labels to write.
        tasks: the files of tasks that were labelled there, with their keys beside them: which policy wrote what.
        labeler: whose labels they are, where the format does not say (TRL).
    """
    from instructlit.labels.argilla import from_argilla
    from instructlit.labels.label_studio import from_label_studio
    from instructlit.labels.trl import from_pairs

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
        raise UserError("no label in it", where=", ".join(files), expected="tasks that somebody has labelled")
    if tasks:
        labels = with_policies(labels, [task for file in tasks for task in read_tasks(file)])
    write_labels(output, labels)
    people = len({label.labeler for label in labels})
    print(f"{output}: {len(labels)} labels of {len({label.task for label in labels})} tasks by {people} labelers")

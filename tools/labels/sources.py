"""Where labels are read from: files, and the labelling database."""

from collections.abc import Iterable, Sequence

from instructlit.labels import Label, Task, read_labels
from instructlit.labels.records import parse_label


def labels_of(files: Sequence[str], database: str | None, gold: bool = False) -> list[Label]:
    """The labels of files, followed by those of a labelling database.

    Args:
        files: files of labels.
        database: file, or URL of a PostgreSQL server; it must exist.
        gold: whether to include the database's labels of gold questions.

    Raises:
        UserError: if a row is invalid, or a file or the database does not exist.
    """
    found = [label for file in files for label in read_labels(file)]
    return found if database is None else found + labels_in(database, gold)


def labels_in(database: str, gold: bool = False) -> list[Label]:
    """The labels of a labelling database, except those of prompts held back or withdrawn."""
    from instructlit.labelling.database import Database
    from instructlit.labelling.records import label_records, label_row

    opened = Database(database, create=False)
    with opened.read() as session:
        rows = [label_row(record) for record in label_records(session, gold=gold)]
    opened.close()
    return [parse_label(row, f"{opened}: task {row['task']}") for row in rows]


def tasks_of(labels: Iterable[Label]) -> dict[str, Task]:
    """The tasks of some labels, by id, as far as known from the labels; completions as in the first label."""
    found: dict[str, Task] = {}
    for label in labels:
        asks = label.kind != "demonstration"
        shown, policy = (label.completions, label.policy) if asks else ([], None)
        about = {"round": label.round, "use_case": label.use_case, "user": label.user}
        found.setdefault(label.task, Task(label.task, label.kind, label.prompt, shown, policy, **about))
    return found

"""The commands around the server: people and their tokens, and tasks in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from instructlit.errors import UserError, counted
from instructlit.labelling import people, tasks
from instructlit.labelling.audit import COMMAND_LINE
from instructlit.labelling.database import Database
from instructlit.labelling.questions import KINDS, Kind
from instructlit.tools.label.rows import parsed_lines, task_record

Source = Literal["native", "argilla", "label_studio", "trl"]


def add_labeler(name: str, *, database: str = "labels.db", role: Literal["labeler", "owner"] = "labeler") -> None:
    """Add a person who may sign in, and print their token. Only its hash is stored: it cannot be shown again.

    Args:
        name: the person's name in exported labels.
        database: file, or URL of a PostgreSQL server.
        role: a labeler sees the work; an owner also sees the dashboard, people, import and export.
    """
    with Database(database).write() as session:
        token = people.add_person(session, COMMAND_LINE, name, role)
    print(token)


def new_token(name: str, *, database: str = "labels.db") -> None:
    """Print another token for a person; revoke first to end the earlier ones.

    Args:
        name: the person the token belongs to.
        database: file, or URL of a PostgreSQL server.
    """
    with Database(database, create=False).write() as session:
        token = people.new_token(session, COMMAND_LINE, people.find_person(session, name))
    print(token)


def revoke(name: str, *, database: str = "labels.db") -> None:
    """Revoke all tokens of a person. Browsers that signed in with them are signed out at once; labels stay.

    Args:
        name: the person the token belongs to.
        database: file, or URL of a PostgreSQL server.
    """
    with Database(database, create=False).write() as session:
        count = people.revoke(session, COMMAND_LINE, people.find_person(session, name))
    print(f"{name}: {count} revoked")


def labelers(*, database: str = "labels.db") -> None:
    """List who may sign in.

    Args:
        database: file, or URL of a PostgreSQL server.
    """
    with Database(database, create=False).read() as session:
        for person, count in people.everybody(session):
            print(f"{person.name:<30} {person.role:<8} {counted(count, 'token')}")


def import_tasks(
    files: list[str],
    *,
    kind: Kind | None = None,
    source: Source = "native",
    database: str = "labels.db",
    output: str | None = None,
    overlap: int = 1,
    round: int | None = None,
    gold: bool = False,
) -> None:
    """Put prompts, or prompts with completions, into the database as tasks: all of them, or none if one is invalid.

    Rows are JSON Lines with `prompt` and, except for demonstrations, 2 to 9 `completions`, as `instructlit generate
    --samples 4` writes them; optional `policy`, `use_case`, `user`, `round`, `overlap`, `priority`. A task that already
    exists is skipped.

    With `--source` they are the tasks of another tool's file, labelled there or not: `instructlit labels import` takes
    the labels. The preference of a chosen/rejected pair is not imported.

    Args:
        files: the files.
        kind: "demonstration" (write an answer), "comparison" (rate and rank) or "evaluation" (blind preference). A file
            of another tool may give it for each task; otherwise a task with completions is a comparison, and one
            without a demonstration.
        source: whose format it is: rows as above, Argilla's `records.to_json`, Label Studio's JSON, TRL pairs.
        database: file, or URL of a PostgreSQL server; a missing file is created.
        output: a file of tasks to write instead of a database, from another tool's files.
        overlap: how many people label each task.
        round: number of the round, for rows without one.
        gold: the rows have the correct `ranks`: gold questions, which show how well each labeler judges.
    """
    if source != "native" and gold:
        raise UserError(
            f"{source} files have no gold questions", where="--gold", expected="rows with `ranks`, without --source"
        )
    if output is not None:
        if overlap != 1:
            raise UserError(
                "a file of tasks does not say how many people label each", where="--overlap", expected="no --output"
            )
        from instructlit.tools.label.elsewhere import write_tasks_of

        write_tasks_of(source, files, kind, round, output)
        return
    checked = []
    for file in files:
        records = _rows(file, kind, gold, round) if source == "native" else _tasks(source, file, kind, round)
        checked.append((file, tasks.task_rows(records, overlap=overlap, source=Path(file).name)))
    with Database(database).write() as session:  # created if missing: no row is rejected after this
        added = [(file, tasks.add_rows(session, COMMAND_LINE, rows, Path(file).name)) for file, rows in checked]
    for file, count in added:
        print(f"{file}: {counted(count.new, 'new task')}, {count.known} already there")


def _tasks(source: Source, file: str, kind: Kind | None, round: int | None) -> Iterator[dict[str, Any]]:
    from instructlit.labels.records import for_database
    from instructlit.tools.label.elsewhere import tasks_of

    for where, task in tasks_of(source, file, kind, round):
        yield for_database(task) | {"where": where}


def _rows(file: str, kind: Kind | None, gold: bool, round: int | None) -> Iterator[dict[str, Any]]:
    if kind is None:
        raise UserError("is needed and not given", where="--kind", expected=f"one of {', '.join(KINDS)}")
    try:
        with open(file, "rb") as lines:
            for where, row in parsed_lines(lines, file):
                yield task_record(row, where, kind, gold, round)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", where="files") from error

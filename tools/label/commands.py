"""The commands around the server: people and their tokens, and tasks in."""

from pathlib import Path
from typing import Literal

from instructlit.errors import UserError
from instructlit.labelling import people, tasks
from instructlit.labelling.audit import COMMAND_LINE
from instructlit.labelling.database import Database
from instructlit.labelling.questions import Kind
from instructlit.tools.label.rows import parsed_lines, task_record


def add_labeler(name: str, *, database: str = "labels.db", role: Literal["labeler", "owner"] = "labeler") -> None:
    """Add somebody who may sign in, and print their token. Only its hash is kept: it cannot be shown again.

    Args:
        name: what the person is called in exported labels.
        database: file, or URL of a PostgreSQL server.
        role: a labeler sees the work; an owner also sees the dashboard, people, import and export.
    """
    with Database(database).write() as session:
        token = people.add_person(session, COMMAND_LINE, name, role)
    print(token)


def new_token(name: str, *, database: str = "labels.db") -> None:
    """Print a further token for somebody; revoke first to end the ones before.

    Args:
        name: the person the token belongs to.
        database: file, or URL of a PostgreSQL server.
    """
    with Database(database, create=False).write() as session:
        token = people.new_token(session, COMMAND_LINE, people.find_person(session, name))
    print(token)


def revoke(name: str, *, database: str = "labels.db") -> None:
    """Revoke every token of somebody. Browsers that signed in with them are out at once; labels stay.

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
            print(f"{person.name:<30} {person.role:<8} {count} {'token' if count == 1 else 'tokens'}")


def import_tasks(
    files: list[str],
    *,
    kind: Kind,
    database: str = "labels.db",
    overlap: int = 1,
    round: int | None = None,
    gold: bool = False,
) -> None:
    """Put prompts, or prompts with completions, into the database as tasks: all of them, or none where one is wrong.

    Rows are JSON Lines with `prompt` and, but for demonstrations, 2 to 9 `completions`, as `instructlit generate
    --samples 4` writes them; optional `policy`, `use_case`, `user`, `round`, `overlap`, `priority`. A task that is
    there already is left out.

    Args:
        files: the files.
        kind: "demonstration" (write an answer), "comparison" (rate and rank) or "evaluation" (blind preference).
        database: file, or URL of a PostgreSQL server; a file that is not there is made.
        overlap: how many people label each task.
        round: number of the round, for rows that name none.
        gold: the rows have the right `ranks`: questions that show how well each labeler judges.
    """
    opened = Database(database)
    with opened.write() as session:
        for file in files:
            try:
                with open(file, "rb") as lines:
                    rows = parsed_lines(lines, file)
                    records = (task_record(row, where, kind, gold, round) for where, row in rows)
                    added = tasks.add_tasks(session, COMMAND_LINE, records, overlap=overlap, source=Path(file).name)
            except OSError as error:
                raise UserError(f"{file} cannot be read: {error.strerror}", where="files") from error
            print(f"{file}: {added.new} new tasks, {added.known} there already")

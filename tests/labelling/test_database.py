"""Schema and storage: upgrades, refusals, what the database itself does not let happen."""

import os
import sqlite3
import stat
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from label_helpers import add_people, add_tasks, comparisons, label, save, take
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DBAPIError

from instructlit.errors import UserError
from instructlit.labelling.database import Database, alembic_config
from instructlit.labelling.schema import Assignment, Base, Event, Revision

OLD_ROWS = """
INSERT INTO person VALUES (1, 'anna', 'labeler', 0);
INSERT INTO task (id, kind, prompt, completions, policies, extra, overlap, priority, state, key, created_at)
VALUES (1, 'demonstration', '"Say a."', '[]', '[]', '{}', 1, 0, 'open', 'k', 0);
INSERT INTO assignment
(id, task_id, person_id, state, "order", version, answer, seconds, lease_until, created_at, updated_at)
VALUES (1, 1, 1, 'open', '[]', 1, '{"completion": "half", "notes": ""}', 5, 0, 0, 0);
INSERT INTO revision (id, assignment_id, version, answer, parent, created_at)
VALUES (1, 1, 1, '{"completion": "half", "notes": ""}', NULL, 0);
INSERT INTO event VALUES (1, 0, 'anna', 'save', 'assignment 1', '{}');
"""


def at_revision(name: str, revision: str) -> None:
    """An older database, as the program of its time left it."""
    url = name if "://" in name else f"sqlite:///{name}"
    engine = create_engine(url)
    command.upgrade(alembic_config(engine), revision)
    with engine.begin() as connection:
        for statement in OLD_ROWS.split(";")[:-1]:
            connection.execute(text(statement.replace(":", "\\:")))
    engine.dispose()


def test_the_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_an_older_database_is_upgraded_with_everything_in_it(database_name: str) -> None:
    at_revision(database_name, "0001")
    if "://" not in database_name:
        os.chmod(database_name, 0o600)
    database = Database(database_name)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    with database.read() as session:
        anna = session.scalars(select(Assignment)).one().person
        draft = session.scalars(select(Assignment)).one()
        assert draft.answer["completion"] == "half"
        assert session.scalars(select(Event)).one().actor == "anna"
        assert session.scalars(select(Revision)).one().nonce is None
    if database.is_sqlite:
        backup = Path(f"{database_name}.schema-0001.bak")
        assert database.backup == backup
        assert stat.S_IMODE(os.stat(backup).st_mode) == 0o600
        copy = sqlite3.connect(backup)
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
        assert copy.execute("SELECT count(*) FROM revision").fetchone() == (1,)
        copy.close()
        # work goes on where it was left
        assert save(database, anna, draft, 1, {"completion": "whole", "notes": ""}).version == 2
    database.close()


def test_a_database_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    Database(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    before = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    with pytest.raises(UserError, match="has schema 9999"):
        Database(path)
    assert connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before
    connection.close()


@pytest.mark.parametrize("table", ["revision", "event"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET id = id + 1"])
def test_history_cannot_be_changed(database: Database, table: str, statement: str) -> None:
    (anna,) = add_people(database, "anna")
    add_tasks(database, *comparisons(1))
    label(database, anna, 1, 2, 3)
    with pytest.raises(DBAPIError, match="append-only"), database.write() as session:
        session.execute(text(statement.format(table)))


def test_a_commit_is_on_the_disk_before_it_returns(file_database: Database) -> None:
    with file_database.read() as session:
        assert session.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_readers_do_not_wait_for_a_writer(file_database: Database) -> None:
    (anna,) = add_people(file_database, "anna")
    add_tasks(file_database, *comparisons(1))
    assignment = take(file_database, anna)
    assert assignment is not None
    with file_database.write() as writer:
        writer.execute(text("UPDATE assignment SET seconds = 99"))
        with file_database.read() as reader:
            assert reader.scalars(select(Assignment)).one().seconds == 0


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    Database(tmp_path / "labels.db").close()
    assert stat.S_IMODE(os.stat(tmp_path / "labels.db").st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mysql://u:secret@host/x", "mysql databases are not supported"),
        ("postgresql://u:secret@host:port/x", "not a database URL"),
        ("postgresql://u:secret@127.0.0.1:1/x", "cannot be opened"),
        ("postgresql://127.0.0.1:1/x?user=u&password=secret", "cannot be opened"),
        ("postgresql://u@127.0.0.1:1/x?sslpassword=secret", "cannot be opened"),
        ("/proc/labels.db", "cannot be written"),
        ("", "'' is a folder"),
        ("/proc", "'/proc' is a folder"),
        ("sqlite:///", "is a folder"),
        (":memory:", "is lost when the command ends"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_message_without_the_password(name: str, message: str) -> None:
    if name.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(UserError, match=message) as caught:
        Database(name)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "labels.db").write_text("a text, and long enough to be looked at " * 40)
    with pytest.raises(UserError, match="cannot be opened: file is not a database"):
        Database(tmp_path / "labels.db")


def test_a_database_that_is_not_there_is_not_made_where_labels_are_wanted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no database"):
        Database(tmp_path / "labels.db", create=False)
    assert not (tmp_path / "labels.db").exists()

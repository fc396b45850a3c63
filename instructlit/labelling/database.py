"""Opening the database: a file (SQLite) or a server (PostgreSQL by URL), brought to the newest schema first.

SQLite runs with a write-ahead log and `synchronous=FULL`: after a commit the data is on disk, and readers do
not wait for the writer. SQLite allows one write at a time, so writers of this process queue at a lock instead of
sleeping and retrying, and take the file's write lock at once (BEGIN IMMEDIATE), so that data read before a write is
still current when it is written. On PostgreSQL the rows that a decision depends on are locked (`assign`, `answers`).
"""

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from instructlit.errors import UserError, first_line, not_installed
from instructlit.redaction import without_secrets

BUSY_SECONDS = 15
_EXPECTED = "a file such as labels.db, or postgresql://user:password@host/name"


class Database:
    """An open labelling database.

    Args:
        name: a file, or a URL of a PostgreSQL server.
        create: whether to create a missing file.

    Raises:
        UserError: if it cannot be opened, or was written by a newer version of this program.
    """

    def __init__(self, name: str | Path, create: bool = True):
        self.url = _url(str(name))
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        path = Path(self.url.database or "")
        if self.is_sqlite and (path.is_dir() or path.name == ":memory:"):  # "" is the folder one is in
            what = f"{str(name)!r} is {'a folder' if path.is_dir() else 'lost when the command ends'}"
            raise UserError(what, where="--database", expected=_EXPECTED)
        if self.is_sqlite and not create and not path.is_file():
            fix = "`instructlit label import` or `instructlit label add-labeler` creates it"
            raise UserError(f"there is no database `{path}`", where="--database", fix=fix)
        try:
            self.engine = _engine(self.url)
            self.backup = self._upgrade()
        except ModuleNotFoundError as error:
            raise not_installed(error, "--database") from error
        except DBAPIError as error:
            reason = first_line(error.orig or error)
            raise UserError(f"{self} cannot be opened: {reason}", where="--database", expected=_EXPECTED) from error
        self._writers = threading.Lock() if self.is_sqlite else nullcontext()
        self._write_engine = self.engine.execution_options(immediate=True)

    def __str__(self) -> str:
        return str(self.url.database) if self.is_sqlite else without_secrets(self.url.render_as_string())

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view; nothing is written."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed, and on disk, when the block ends; rolled back if it raises."""
        with self._writers, Session(self._write_engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    def _upgrade(self) -> Path | None:
        """Migrates the schema to the newest revision; a file with an older one is first copied to the same folder."""
        config = alembic_config(self.engine)
        newest = ScriptDirectory.from_config(config).get_current_head()
        with self.engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found == newest:
            return None
        backup = self._copy(found) if found and self.is_sqlite else None
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            what = f"{self} has schema {found}, which this version does not know (its newest is {newest})"
            raise UserError(what, where="--database", fix="use the version of instructlit that wrote it") from error
        return backup

    def _copy(self, revision: str) -> Path:
        path = Path(str(self.url.database))
        target = path.with_name(f"{path.name}.schema-{revision}.bak")
        target.touch(mode=0o600)  # SQLite would make it readable by anyone who may read new files here
        shutil.copymode(path, target)
        source, copy = sqlite3.connect(path), sqlite3.connect(target)
        try:
            source.backup(copy)
        finally:
            source.close()
            copy.close()
        return target


def alembic_config(engine: Engine) -> Config:
    """Alembic's configuration, without a file: the folder of the migrations and the engine they run on."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["engine"] = engine
    return config


def is_busy(error: Exception) -> bool:
    """Whether the database was only busy, so that a retry may succeed."""
    return isinstance(error, OperationalError) and "locked" in str(error.orig)


def _url(name: str) -> URL:
    if "://" not in name:
        return URL.create("sqlite", database=name)
    try:
        url = make_url(name)
    except (ArgumentError, ValueError) as error:  # the text may contain a password: it is not repeated
        raise UserError("this is not a database URL", where="--database", expected=_EXPECTED) from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        what = f"{url.get_backend_name()} databases are not supported"
        raise UserError(what, where="--database", expected=_EXPECTED)
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        try:
            return create_engine(url, pool_size=20, max_overflow=20, pool_pre_ping=True, hide_parameters=True)
        except NoSuchModuleError as error:
            raise UserError(
                f"{url.drivername} is not a known driver", where="--database", expected=_EXPECTED
            ) from error
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)  # labels and token digests are private
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", where="--database") from error
    engine = create_engine(
        url, pool_size=40, max_overflow=10, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection, _record) -> None:
        connection.isolation_level = None  # BEGIN is sent below, not by the driver
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection) -> None:
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine

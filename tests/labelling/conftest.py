"""Databases. Where a PostgreSQL server is on the machine, what takes the fixture `database` runs on both kinds."""

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from instructlit.labelling.database import Database


def postgres_folder() -> Path | None:
    """Where PostgreSQL's programs are, or None."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL, without a database's name, of a server that lives as long as the tests do."""
    programs = postgres_folder()
    if programs is None:
        pytest.skip("needs PostgreSQL's initdb and postgres")
    pytest.importorskip("psycopg")
    user = getpass.getuser()
    if os.geteuid() == 0:  # the server refuses to run as root
        user = next(
            (name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}), ""
        )
        if not user:
            pytest.skip("needs another user than root to run PostgreSQL as")
    folder = Path(tempfile.mkdtemp(prefix="label-postgres-"))
    shutil.chown(folder, user)
    as_user: dict[str, Any] = {"user": user} if os.geteuid() == 0 else {}
    data = folder / "data"
    init = [
        programs / "initdb",
        "-D",
        data,
        "-U",
        "tests",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
        "--no-instructions",
    ]
    subprocess.run(init, check=True, capture_output=True, cwd=folder, **as_user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["-h", "127.0.0.1", "-p", str(port), "-c", "unix_socket_directories=", "-c", "fsync=off"]
    log = open(folder / "log", "w")  # noqa: SIM115 - closed below
    server = subprocess.Popen([programs / "postgres", "-D", data, *options], stderr=log, cwd=folder, **as_user)
    url = f"postgresql+psycopg://tests@127.0.0.1:{port}/"
    try:
        _wait_for(url, server, folder / "log")
        yield url
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing in it is worth a checkpoint
        server.wait()
        log.close()
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_name(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A file's name, or the URL of an empty database of a server."""
    if request.param == "sqlite":
        yield str(tmp_path / "labels.db")
        return
    url = request.getfixturevalue("postgres_url")
    name = f"test_{time.monotonic_ns()}"
    engine = create_engine(f"{url}postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    yield f"{url}{name}"


@pytest.fixture
def database(database_name: str) -> Iterator[Database]:
    """An empty labelling database."""
    opened = Database(database_name)
    yield opened
    opened.close()


@pytest.fixture
def file_database(tmp_path: Path) -> Iterator[Database]:
    """An empty labelling database in a file, for what does not depend on the kind of database."""
    opened = Database(tmp_path / "labels.db")
    yield opened
    opened.close()


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    engine = create_engine(f"{url}postgres")
    for _ in range(200):
        try:
            with engine.connect():
                engine.dispose()
                return
        except Exception:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    pytest.fail(f"PostgreSQL did not start: {log.read_text()[-2000:]}")

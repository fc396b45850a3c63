"""The commands and the running server: killed while it saves, refused options, tasks in and labels out."""

import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from label_helpers import add_people, add_tasks, comparisons, label
from sqlalchemy import select, text

from instructlit.cli import main, split_command
from instructlit.data.readers import open_source
from instructlit.data.records import records_of
from instructlit.data.sources import Source
from instructlit.errors import UserError
from instructlit.labelling.database import Database
from instructlit.labelling.schema import Assignment, Event, Revision
from instructlit.tools.label import commands
from instructlit.tools.label.rows import task_record
from instructlit.tools.label.security import csrf_token


@contextmanager
def serving(database: Path, *options: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server process and its port."""
    command = [sys.executable, "-m", "instructlit", "label", "--database", str(database), "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        found = re.search(r":(\d+)  \(Ctrl-C to stop\)", said)
        assert found is not None, said + server.stdout.read()
        yield server, int(found[1])
    finally:
        server.kill()
        server.communicate()


class Caller:
    """A client of one connection, signed in."""

    def __init__(self, port: int, token: str):
        self.connection, self.cookies = http.client.HTTPConnection("127.0.0.1", port, timeout=20), {}
        self.call("GET", "/sign-in")
        self.secret = self.cookies["visitor"]
        assert self.call("POST", "/sign-in", token=token)[0] == 303
        self.secret = self.cookies["session"]

    def call(self, method: str, path: str, **fields: object) -> tuple[int, str, str]:
        """Status, body, and where it leads."""
        headers = {"cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items()), "accept": "application/json"}
        body = None
        if method == "POST":
            headers["content-type"] = "application/x-www-form-urlencoded"
            body = urlencode({"csrf": csrf_token(self.secret)} | fields)
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        for cookie in reply.headers.get_all("set-cookie") or ():
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return reply.status, reply.read().decode(), reply.headers.get("location") or ""


def run(*words: str) -> int:
    return main(["label", *words])


def test_killed_while_saving_the_server_loses_nothing_that_it_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels.db"
    at = ("--database", str(path))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Write."}\n')
    assert run("add-labeler", "olga", "--role", "owner", *at) == 0
    capsys.readouterr()
    assert run("add-labeler", "anna", *at) == 0
    token = capsys.readouterr().out.strip()
    assert run("import", str(prompts), "--kind", "demonstration", *at) == 0

    acknowledged = 0
    for _ in range(2):
        with serving(path) as (server, port):
            anna = Caller(port, token)
            work = anna.call("POST", "/next", kind="demonstration")[2]
            timer = threading.Timer(0.4, lambda pid=server.pid: os.kill(pid, signal.SIGKILL))
            begun = acknowledged
            for number in itertools.count(begun + 1):
                try:
                    status, body, _ = anna.call(
                        "POST", f"{work}/draft", version=number - 1, completion=f"draft {number}"
                    )
                except (OSError, http.client.HTTPException):
                    break
                assert (status, json.loads(body)["version"]) == (200, number), body
                acknowledged = number
                if number == begun + 3:
                    timer.start()  # from here on, somewhere within a save
            timer.join()
            assert server.wait() == -signal.SIGKILL
        database = Database(path)
        with database.read() as session:
            found = session.scalars(select(Assignment)).one()
            assert found.version in (acknowledged, acknowledged + 1)  # the last one may be stored and not told
            assert found.answer["completion"] == f"draft {found.version}"
            versions = session.scalars(select(Revision.version).order_by(Revision.version)).all()
            assert versions == list(range(found.version + 1))
            saves = session.scalars(select(Event).where(Event.action == "save")).all()
            assert [event.detail["version"] for event in saves] == list(range(1, found.version + 1))
            assert session.execute(text("PRAGMA integrity_check")).scalar() == "ok"
            acknowledged = found.version
        database.close()
    assert acknowledged > 6


def test_the_server_answers_with_tls_and_ends_on_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    database = Database(path)
    add_people(database, "olga", role="owner")
    database.close()
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs openssl")
    import ssl

    with serving(path, "--tls_certificate", str(certificate), "--tls_key", str(key)) as (server, port):
        context = ssl.create_default_context(cafile=str(certificate))
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
        connection.request("GET", "/sign-in")
        reply = connection.getresponse()
        assert reply.status == 200
        assert (reply.headers["set-cookie"] or "").startswith("__Host-visitor")
        assert "server" not in reply.headers
        connection.close()
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 130


def test_another_loopback_address_is_a_name_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    database = Database(path)
    add_people(database, "olga", role="owner")
    database.close()
    with serving(path, "--host", "127.0.0.2") as (_, port):
        connection = http.client.HTTPConnection("127.0.0.2", port, timeout=20)
        found = []
        for host in ("127.0.0.2", "127.0.0.3"):
            connection.request("GET", "/sign-in", headers={"Host": f"{host}:{port}"})
            reply = connection.getresponse()
            reply.read()
            found.append(reply.status)
        connection.close()
    assert found == [200, 400]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is no database"),
        (("--host", "0.0.0.0"), "can be reached from other machines"),
        (("--host", "::"), "can be reached from other machines"),
        (("--host", "labels.example"), "can be reached from other machines"),
        (("--tls_key", "k.pem"), "one of --tls_certificate and --tls_key is missing"),
        (("--port", "70000"), "70000 is not a port"),
        (("--lease_minutes", "0"), "1 to 10080"),
    ],
)
def test_what_the_server_refuses_is_one_message(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--database", str(tmp_path / "labels.db"), *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == [], "the file of a misspelt name would be taken for the labels"


def test_a_server_that_nobody_can_sign_in_to_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--database", str(tmp_path / "labels.db"))
    assert run("add-labeler", "anna", *at) == 0
    assert run(*at) == 2
    assert "no owner can sign in yet" in capsys.readouterr().err


def test_a_port_in_use_and_a_certificate_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "labels.db"
    database = Database(path)
    add_people(database, "olga", role="owner")
    database.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run("--database", str(path), "--port", str(taken.getsockname()[1])) == 2
    assert "cannot listen on this address" in capsys.readouterr().err
    (tmp_path / "c.pem").write_text("no certificate")
    options = ("--tls_certificate", str(tmp_path / "c.pem"), "--tls_key", str(tmp_path / "c.pem"))
    assert run("--database", str(path), *options) == 2
    assert "the certificate or its key cannot be used" in capsys.readouterr().err


def test_an_option_is_not_taken_for_a_slip_in_a_second_word() -> None:
    assert split_command(["label", "--port", "1"]) == ("label", ["--port", "1"])  # --port is much like import
    assert split_command(["label", "import", "x"]) == ("label import", ["x"])
    with pytest.raises(UserError, match="no command `label imports`"):
        split_command(["label", "imports", "x"])


def test_people_come_and_go_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--database", str(tmp_path / "labels.db"))
    assert run("add-labeler", "anna", *at) == 0
    first = capsys.readouterr().out.strip()
    assert first.encode() not in (tmp_path / "labels.db").read_bytes()
    assert run("new-token", "anna", *at) == 0
    assert capsys.readouterr().out.strip() != first
    assert run("labelers", *at) == 0
    assert re.search(r"anna +labeler +2 tokens", capsys.readouterr().out)
    assert run("revoke", "anna", *at) == 0
    assert "2 revoked" in capsys.readouterr().out
    assert run("revoke", "ann", *at) == 2
    assert "one of: anna" in capsys.readouterr().err
    assert run("add-labeler", "anna", *at) == 2
    assert "there is already somebody called 'anna'" in capsys.readouterr().err


def test_tasks_in_and_labels_out_as_training_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, rows = tmp_path / "labels.db", tmp_path / "rows.jsonl"
    sampled = {
        "prompt": "Say a.",
        "completions": ["a", "b"],
        "ended": [True, False],
        "policy": "models/sft",
        "user": "u",
    }
    rows.write_text(json.dumps(sampled) + "\n")
    at = ("--database", str(path))
    assert run("import", str(rows), "--kind", "comparison", "--round", "2", *at) == 0
    database = Database(path)
    (anna,) = add_people(database, "anna")
    label(database, anna, 2, 1, ratings=[3, 6])
    database.close()
    out = tmp_path / "out" / "comparisons.jsonl"
    assert main(["labels", "export", "--output", str(out.parent), "--validation_fraction", "0", *at]) == 0
    ((_, _, _, form, record),) = records_of(open_source(Source(str(out)), "train"), "comparison")
    assert form == "native"
    assert (record.prompt, record.ranks, record.ratings) == ("Say a.", [2, 1], [3, 6])  # type: ignore[union-attr]
    assert (record.labeler, record.policy, record.user) == ("anna", ["models/sft"] * 2, "u")  # type: ignore[union-attr]
    assert json.loads(out.read_text())["round"] == 2
    assert main(["labels", "agreement", *at]) == 0
    assert "0 of 1 ranked task with two or more labelers" in capsys.readouterr().out
    assert main(["labels", "export", "--output", str(out.parent), "--database", str(tmp_path / "none.db")]) == 2
    assert "there is no database" in capsys.readouterr().err
    assert run("import", str(rows), str(tmp_path / "missing.jsonl"), "--kind", "comparison", *at) == 2
    told = capsys.readouterr()
    assert "cannot be read" in told.err
    assert told.out == "", "nothing was kept"
    rows.write_text(json.dumps(sampled) + "\n" + json.dumps(sampled | {"completions": ["a"]}))
    assert run("import", str(rows), "--kind", "comparison", *at) == 2
    assert f"{rows}:2: completions: found 1\n" in capsys.readouterr().err
    assert run("import", str(rows), "--kind", "comparison", "--database", str(tmp_path / "new.db")) == 2
    assert not (tmp_path / "new.db").exists(), "it is made with the first tasks"


def test_while_files_are_read_nobody_waits_for_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructlit.labelling.database.BUSY_SECONDS", 0.1)
    path = tmp_path / "labels.db"
    others = Database(path)

    def read_slowly(row, *rest):
        add_people(others, row["prompt"])
        return task_record(row, *rest)

    monkeypatch.setattr(commands, "task_record", read_slowly)
    files = [tmp_path / name for name in ("anna", "ben")]
    for file in files:
        file.write_text(json.dumps({"prompt": file.name}))
    assert run("import", *map(str, files), "--kind", "demonstration", "--database", str(path)) == 0


@pytest.mark.parametrize("module", ["serve", "commands"])
def test_the_server_and_its_commands_need_no_torch(module: str) -> None:
    code = f"import sys, instructlit.tools.label.{module}; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_extra_one_message_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "instructlit.tools.label.serve", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run() == 2
    assert "pip install 'instructlit[label]'" in capsys.readouterr().err


def test_comparisons_by_name_are_not_lost_over_rounds(file_database: Database) -> None:
    add_tasks(file_database, *comparisons(1, round=1), *comparisons(1, round=2))
    (anna,) = add_people(file_database, "anna")
    label(file_database, anna, 1, 2, 3)
    label(file_database, anna, 3, 2, 1)
    from instructlit.labelling.records import label_records

    with file_database.read() as session:
        assert [r["ranks"] for r in label_records(session, rounds=[2])] == [[3, 2, 1]]

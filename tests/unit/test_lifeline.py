"""Connections between processes, here between threads' ends of them: who is told what when one is gone."""

import socket
import threading
from collections.abc import Iterator

import lightning.pytorch as pl
import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from instructlit.errors import Ending
from instructlit.modules import lifeline
from instructlit.modules.lifeline import _Watch

Star = tuple[dict[int, _Watch], dict[int, list[int]], dict[int, socket.socket]]
"""The watch of each rank, the exit statuses of those that ended, and the far ends of rank 0's connections."""


@pytest.fixture
def star(monkeypatch: pytest.MonkeyPatch) -> Iterator[Star]:
    """Ranks 0, 1, 2, of which 1 and 2 are connected to 0; where a process would end, its thread does and is noted."""
    monkeypatch.setattr(lifeline, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(lifeline, "_OWN_SECONDS", 0.05)
    ended: dict[int, list[int]] = {}

    def leave(status: int) -> None:
        watch = threading.current_thread()
        assert isinstance(watch, _Watch)
        ended.setdefault(watch.rank, []).append(status)

    monkeypatch.setattr("os._exit", leave)
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    watches = {0: _Watch({rank: pair[0] for rank, pair in pairs.items()}, 0)}
    watches |= {rank: _Watch({0: pair[1]}, rank) for rank, pair in pairs.items()}
    for watch in watches.values():
        watch.start()
    yield watches, ended, {rank: pair[1] for rank, pair in pairs.items()}
    for watch in watches.values():
        watch.leave("bye")
        watch.join(10)


def words(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("instructlit")]


def test_one_that_is_gone_ends_all_others(star: Star, capsys: pytest.CaptureFixture[str]) -> None:
    watches, ended, sockets = star
    watches[1]._left = True
    sockets[1].shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that is killed
    for rank in (0, 2):
        watches[rank].join(10)
    assert ended == {0: [lifeline.STATUS], 2: [lifeline.STATUS]}
    told = words(capsys)
    assert len(told) == 2
    assert all("process 1 of the run was lost" in line for line in told)
    assert "process 1" in str(watches[2].loss(within=0.0))


def test_one_that_fails_is_named_to_all_others(star: Star, capsys: pytest.CaptureFixture[str]) -> None:
    watches, ended, _ = star
    watches[2].leave("failed")
    for rank in (0, 1):
        watches[rank].join(10)
    assert sorted(ended) == [0, 1]
    assert all("process 2 of the run stopped with an error of its own" in line for line in words(capsys))


@pytest.mark.parametrize(
    ("exception", "status"),
    [
        *((error, lifeline.STATUS) for error in (KeyboardInterrupt(), ValueError(), SystemExit(0))),
        *((error, None) for error in (Ending(75), SIGTERMException())),
    ],
)
def test_what_ends_one_process_alone_is_told_to_the_others(
    star: Star, capsys: pytest.CaptureFixture[str], exception: BaseException, status: int | None
) -> None:
    watches, ended, _ = star
    line = lifeline.Lifeline()
    line._watch = watches[2]
    line.on_exception(pl.Trainer(logger=False, accelerator="cpu"), pl.LightningModule(), exception)
    watches[0].join(10 if status else 0.3)
    assert ended.get(0) == ([status] if status else None)
    told = "process 2 of the run stopped with an error of its own"
    assert any(told in line for line in words(capsys)) == bool(status)


def test_who_says_goodbye_is_not_missed(star: Star, capsys: pytest.CaptureFixture[str]) -> None:
    watches, ended, _ = star
    for rank in (2, 0, 1):
        watches[rank].leave("bye")
    for watch in watches.values():
        watch.join(10)
    assert ended == {}
    assert words(capsys) == []


def test_two_that_fail_at_the_same_place_tell_nothing_of_each_other(
    star: Star, capsys: pytest.CaptureFixture[str]
) -> None:
    watches, ended, _ = star
    for rank in (1, 2, 0):
        watches[rank].leave("failed")
    for watch in watches.values():
        watch.join(10)
    assert ended == {}
    assert words(capsys) == []


def test_only_who_knows_the_word_is_let_in() -> None:
    listener = lifeline._listener(True, 2)
    port = listener.getsockname()[1]
    found: dict[int, socket.socket] = {}
    server = threading.Thread(target=lambda: found.update(lifeline._accept(listener, "secret", 1)))
    server.start()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"\xff\xfe guess 1\n")
        ours = lifeline._connect(lifeline.LOOPBACK, port, "secret", 1)
        server.join(20)
    assert list(found) == [1]
    ours[0].sendall(b"bye 1\n")
    assert lifeline._read(found[1]) == "bye 1"
    for line in (ours[0], found[1]):
        line.close()

"""Processes of one run that notice within seconds when another is gone, whatever they are doing.

A collective would notice too, but only the next one, and with NCCL only after the timeout of the process group, half an
hour: too short a timeout ends healthy runs whose ranks wait for a long rollout. So every process holds a TCP connection
to the first, over which nothing is sent. When a process dies, by SIGKILL too, its kernel closes the connection, and
where a machine dies the others' kernels find out by keepalive within a minute. No thread of Python has to run in time
for that, so a process that is merely busy is never taken for a dead one. One that hangs, alive, is not noticed: for
that there is the timeout of the process group (`trainer.strategy.init_args.timeout`).
"""

import atexit
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import warnings
import weakref
from contextlib import suppress

import lightning.pytorch as pl

from instructlit.errors import UserError, is_ending

GRACE_SECONDS = 10.0
"""What a process has for an orderly end after another is lost; one that waits in a collective has no other way out."""
STATUS = 3
"""Exit status of a process that ends since another was lost."""
LOOPBACK = "127.0.0.1"
_OWN_SECONDS = 2.0  # in which a process that stops with the same error as another has said so itself
_CONNECT_SECONDS = 60.0
_open: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()
_BYE, _FAILED, _LOST = "bye", "failed", "lost"  # what is said over the line, the last two with a rank


class Lifeline(pl.Callback):
    """Ends this process when another of the run is lost; does nothing in a run of one process."""

    def __init__(self) -> None:
        self._watch: _Watch | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self._watch is not None:
            return
        alone = trainer.num_nodes == 1
        listener = _listener(alone, trainer.world_size) if trainer.global_rank == 0 else None
        place = (listener.getsockname()[1], secrets.token_hex(16)) if listener else None
        port, word = trainer.strategy.broadcast(place)  # type: ignore[misc]
        first = LOOPBACK if alone else os.environ["MASTER_ADDR"]
        lines = (
            _accept(listener, word, trainer.world_size - 1)
            if listener
            else _connect(first, port, word, trainer.global_rank)
        )
        if len(lines) < (trainer.world_size - 1 if listener else 1):
            warnings.warn(
                f"process {trainer.global_rank} is not connected to all the processes that it should watch: if one of "
                "them dies, the others may wait until the timeout of the process group",
                stacklevel=2,
            )
        _open.update(lines.values())
        self._watch = _Watch(lines, trainer.global_rank)
        self._watch.start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._leave(_BYE)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._watch is None:
            return
        if isinstance(exception, RuntimeError) and (fault := self._watch.loss(within=1.0)):
            # A broken collective is how the loss of another process looks from here; its message is the one to read.
            exception.__cause__ = fault
            return
        # An interrupt or an exit may be of this process alone, in which case the others wait for it.
        of_all = is_ending(exception) or getattr(exception, "on_all_ranks", False)
        self._leave(_BYE if of_all else _FAILED)

    def _leave(self, word: str) -> None:
        if self._watch is not None:
            self._watch.leave(word)
            self._watch = None


class _Watch(threading.Thread):
    """Waits for the end of a connection.

    Args:
        lines: the connection to each rank that this one has one to.
        rank: this one.
    """

    def __init__(self, lines: dict[int, socket.socket], rank: int):
        super().__init__(name="lifeline", daemon=True)
        atexit.register(self.leave, _BYE)  # a process that ends in its own order was not lost
        self.lines, self.rank = lines, rank
        self._selector = selectors.DefaultSelector()
        for other, line in lines.items():
            self._selector.register(line, selectors.EVENT_READ, other)
        self._left = False
        self._heard = threading.Event()
        self._lock = threading.Lock()
        self._fault: UserError | None = None

    def run(self) -> None:
        with self._selector as selector:
            while selector.get_map() and not self._left:
                for key, _ in selector.select(timeout=1.0):
                    word, _, rank = _read(self.lines[key.data]).partition(" ")
                    if self._left:
                        return
                    if word != _BYE:
                        self._end(word or _LOST, int(rank or key.data))
                        return
                    selector.unregister(key.fileobj)

    def loss(self, within: float) -> UserError | None:
        """The message about a lost process, if one is or gets lost within so many seconds; it is then on stderr."""
        if self._heard.wait(within):
            self._say()
        return self._fault

    def leave(self, word: str) -> None:
        """Stop watching; the others are told why."""
        with self._lock:
            if self._left or (self._fault is not None and self._fault.told):
                return
            self._left = True
        self._tell(word, self.rank)
        for line in self.lines.values():
            line.close()

    def _tell(self, word: str, rank: int) -> None:
        for other, line in self.lines.items():
            if other != rank:
                with suppress(OSError):
                    line.sendall(f"{word} {rank}\n".encode())

    def _say(self) -> None:
        """Print the message, once, and not where this process has ended for a reason of its own."""
        with self._lock:
            if self._fault is not None and not self._fault.told and not self._left:
                print(f"instructlit: {self._fault}", file=sys.stderr, flush=True)
                self._fault.told = True

    def _end(self, word: str, rank: int) -> None:
        """Say that a process is lost, pass it on, and see that this one ends too."""
        self._fault = _message(rank, word == _FAILED)
        self._heard.set()
        if word == _FAILED:
            time.sleep(_OWN_SECONDS)
        self._say()
        if self._left:
            return
        self._tell(word, rank)
        time.sleep(GRACE_SECONDS)
        sys.stdout.flush()
        os._exit(STATUS)


def _message(rank: int, failed: bool) -> UserError:
    how = "stopped with an error of its own" if failed else "was lost: it was killed, or its machine is down"
    fault = UserError(
        f"process {rank} of the run {how}, so this one stops too",
        expected="all processes to run to the end",
        fix=("read what it printed" if failed else "find out what ended it (out of memory?)")
        + ", then run the same command again: with a ResumeCheckpoint it resumes from the last checkpoint",
    )
    fault.status = STATUS
    return fault


def _listener(alone: bool, backlog: int) -> socket.socket:
    """Where the other ranks call; from other machines only where there are some."""
    if alone:
        return socket.create_server((LOOPBACK, 0), backlog=backlog)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=backlog)


def _accept(listener: socket.socket, word: str, count: int) -> dict[int, socket.socket]:
    """The connections of the other ranks, each of which begins with the word and its rank."""
    lines: dict[int, socket.socket] = {}
    give_up = time.monotonic() + _CONNECT_SECONDS
    with listener:
        while len(lines) < count and (left := give_up - time.monotonic()) > 0:
            listener.settimeout(left)
            with suppress(OSError):
                line, _ = listener.accept()
                line.settimeout(5.0)
                told, _, rank = _read(line).partition(" ")
                if told == word:
                    lines[int(rank)] = _kept_alive(line)
                else:  # somebody else's
                    line.close()
    return lines


def _connect(first: str, port: int, word: str, rank: int) -> dict[int, socket.socket]:
    """The connection to rank 0; nothing where it cannot be had."""
    try:
        line = socket.create_connection((first, port), timeout=_CONNECT_SECONDS)
        line.sendall(f"{word} {rank}\n".encode())
    except OSError:
        return {}
    return {0: _kept_alive(line)}


def _close_in_child() -> None:
    """A forked worker of a loader would hold the connection of a process that has ended."""
    for line in list(_open):
        line.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _kept_alive(line: socket.socket) -> socket.socket:
    """Probes after 15 seconds of silence, every 5 seconds; after six that nobody answers the connection is dead."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return line


def _read(line: socket.socket) -> str:
    """A line of text without its end, or nothing where the connection ended before it."""
    said = b""
    with suppress(OSError):
        while not said.endswith(b"\n") and len(said) < 100 and (piece := line.recv(64)):
            said += piece
    return said.decode("ascii", "replace").strip() if said.endswith(b"\n") else ""

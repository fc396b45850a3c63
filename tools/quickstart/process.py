"""Runs commands with their output on the terminal, progress bars included, and in log files."""

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>78]|\x1b\][^\x07]*\x07")


class LineLog:
    """Writes terminal output as plain text: no colours, and only the last state of an overwritten line."""

    def __init__(self, file: TextIO):
        self._file = file
        self._open = b""

    def write(self, data: bytes) -> None:
        """Takes any piece of the stream; lines are written once they are complete."""
        *lines, self._open = (self._open + data).split(b"\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Writes a last line without a newline."""
        if self._open:
            self._line(self._open)
            self._open = b""

    def _line(self, raw: bytes) -> None:
        text = _ESCAPES.sub("", raw.decode("utf-8", errors="replace")).rstrip("\r")
        self._file.write(text.rsplit("\r", 1)[-1].rstrip() + "\n")
        self._file.flush()


@dataclass(frozen=True)
class Job:
    """One command to run.

    Args:
        command: program and arguments.
        log: receives the output as plain lines.
        environment: its environment variables.
        folder: its working directory.
    """

    command: Sequence[str]
    log: TextIO
    environment: Mapping[str, str]
    folder: Path


def run_logged(jobs: Mapping[str, Job], *, keep_open: Sequence[int] = ()) -> dict[str, int | None]:
    """Runs commands side by side and returns the exit status of each, under the names of `jobs`.

    A single command gets a terminal of its own where there is one, so that its progress bars work. Several get pipes,
    and every line shown begins with the name of its command. When one fails the others are stopped, and their status is
    None. On Ctrl-C all are asked to stop, given time to do so, and KeyboardInterrupt is
    raised here.

    Args:
        jobs: the commands by name.
        keep_open: file descriptors the commands inherit.
    """
    terminal = len(jobs) == 1 and sys.stdout.isatty() and os.name == "posix"
    width = max(map(len, jobs)) if len(jobs) > 1 else 0
    running = [_Running(name, job, keep_open, terminal, width) for name, job in jobs.items()]
    try:
        _pump(running)
        return {one.name: None if one.stopped else one.process.wait() for one in running}
    except KeyboardInterrupt:
        _stop(running)
        raise
    finally:
        for one in running:
            one.close()


class _Running:
    """A started command and the read end of its output."""

    def __init__(self, name: str, job: Job, keep_open: Sequence[int], terminal: bool, width: int):
        self.name, self.lines, self._width, self._line = name, LineLog(job.log), width, b""
        self.reader, writer = os.openpty() if terminal else os.pipe()
        if terminal:
            _copy_size(writer)
        self.process = subprocess.Popen(
            job.command,
            cwd=job.folder,
            env=dict(job.environment),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the command through `run_logged` alone, once
            pass_fds=tuple(keep_open),
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        os.close(writer)
        self.open, self.stopped = True, False

    def read(self) -> None:
        """Reads what is available; at the end of the output `open` becomes False."""
        try:
            data = os.read(self.reader, 65536)
        except OSError:  # on Linux: the last writer has closed the pseudo-terminal
            data = b""
        self.open = bool(data)
        self.lines.write(data)
        self._show(data)

    def _show(self, data: bytes) -> None:
        out: BinaryIO = sys.stdout.buffer
        if self._width:
            *whole, self._line = (self._line + data).split(b"\n")
            head = f"      {self.name:<{self._width}} | ".encode()
            data = b"".join(head + line.strip(b"\r") + b"\n" for line in whole if line.strip())
        out.write(data)
        out.flush()

    def close(self) -> None:
        """Writes the rest of the log."""
        self.lines.close()
        os.close(self.reader)


def _pump(running: Sequence[_Running], seconds: float | None = None) -> None:
    """Copies output until the commands close it or end, for at most `seconds`."""
    waited = 0.0
    while (still := [one for one in running if one.open]) and (seconds is None or waited < seconds):
        ready, _, _ = select.select([one.reader for one in still], [], [], 0.5)
        waited += 0.0 if ready else 0.5
        for one in still:
            if one.reader in ready:
                one.read()
            elif one.process.poll() is not None:
                one.open = False  # a grandchild may hold the other end open; it is not waited for
        if seconds is None and any(one.process.poll() for one in running):
            others = [one for one in running if one.process.poll() is None]
            for one in others:
                one.stopped = True
            _stop(others)


def _stop(running: Sequence[_Running]) -> None:
    """Interrupts the commands and, if they have not ended after twenty seconds, kills them and their children."""
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C skips the wait
        for one in running:
            one.process.send_signal(signal.SIGINT)
        _pump(running, seconds=20)
        for one in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(timeout=2)
    for one in running:
        if one.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def _copy_size(descriptor: int) -> None:
    import fcntl
    import struct
    import termios

    columns, rows = shutil.get_terminal_size()
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _die_with_parent() -> None:
    """Linux: the command ends with this process even if this process is killed with SIGKILL."""
    PR_SET_PDEATHSIG = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

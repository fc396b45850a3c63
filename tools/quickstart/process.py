"""Running one command with its output both on the terminal, progress bars included, and in a log file."""

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
from pathlib import Path
from typing import BinaryIO, TextIO

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>78]|\x1b\][^\x07]*\x07")


class LineLog:
    """Writes terminal output as a person saw it: colours dropped, of an overwritten line only the last state."""

    def __init__(self, file: TextIO):
        self._file = file
        self._open = b""

    def write(self, data: bytes) -> None:
        """Takes any piece of the stream; lines reach the file when they are complete."""
        *lines, self._open = (self._open + data).split(b"\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Writes what stands without a final newline."""
        if self._open:
            self._line(self._open)
            self._open = b""

    def _line(self, raw: bytes) -> None:
        text = _ESCAPES.sub("", raw.decode("utf-8", errors="replace")).rstrip("\r")
        self._file.write(text.rsplit("\r", 1)[-1].rstrip() + "\n")
        self._file.flush()


def run_logged(
    command: Sequence[str], *, folder: Path, log: TextIO, environment: Mapping[str, str], keep_open: Sequence[int] = ()
) -> int:
    """Runs `command` in `folder` and returns its exit status.

    Under a terminal the command gets a terminal of its own, so that its progress bars draw themselves; otherwise it
    gets a pipe. On Ctrl-C the command is asked to stop, given time to do so, and KeyboardInterrupt is raised here.

    Args:
        command: program and arguments.
        folder: working directory of the command.
        log: receives the output as plain lines.
        environment: of the command.
        keep_open: file descriptors the command inherits.
    """
    terminal = sys.stdout.isatty() and os.name == "posix"
    reader, writer = os.openpty() if terminal else os.pipe()
    if terminal:
        _copy_size(writer)
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the command through this function alone, once
        pass_fds=tuple(keep_open),
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    os.close(writer)
    lines = LineLog(log)
    try:
        _pump(reader, process, lines)
        return process.wait()
    except KeyboardInterrupt:
        _stop(process, reader, lines)
        raise
    finally:
        lines.close()
        os.close(reader)


def _pump(reader: int, process: subprocess.Popen[bytes], lines: LineLog, seconds: float | None = None) -> None:
    """Copies output until the command closes it or has ended, at most for `seconds`."""
    out: BinaryIO = sys.stdout.buffer
    waited = 0.0
    while seconds is None or waited < seconds:
        ready, _, _ = select.select([reader], [], [], 0.5)
        if not ready:
            waited += 0.5
            if process.poll() is not None:
                return  # a grandchild may hold the other end open; nobody waits for it
            continue
        try:
            data = os.read(reader, 65536)
        except OSError:  # how Linux says that the last writer has closed a pseudo-terminal
            return
        if not data:
            return
        out.write(data)
        out.flush()
        lines.write(data)


def _stop(process: subprocess.Popen[bytes], reader: int, lines: LineLog) -> None:
    """Interrupts the command and, after twenty seconds without effect, kills it and what it started."""
    with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C skips the wait
        process.send_signal(signal.SIGINT)
        _pump(reader, process, lines, seconds=20)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _copy_size(descriptor: int) -> None:
    import fcntl
    import struct
    import termios

    columns, rows = shutil.get_terminal_size()
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _die_with_parent() -> None:
    """Linux: the command ends with this process even where this process is killed outright."""
    PR_SET_PDEATHSIG = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

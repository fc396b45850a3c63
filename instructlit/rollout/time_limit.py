"""A limit in seconds on a call into other people's code, on the thread it is called from.

It stays on its thread because scoring code may rely on that: libraries that set their own alarms work only on the main
one. Two things end it, one after the other:

1. At the limit the main thread gets a signal (SIGUSR2), whose handler raises there. That ends Python code, `sleep`, and
   every wait in the system that signals interrupt: sockets, pipes, locks, child processes, `sleep` in C.
2. Code that does not come back to Python, such as a wait in a C library that begins again after a signal, cannot be
   left. `GRACE_SECONDS` later the message is printed from another thread and the process ends.

Not ended by either: C code that holds the interpreter's lock, under which no other thread can run at all. Away from the
main thread, and on Windows, only the second works.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from instructlit.errors import UserError

T = TypeVar("T")
GRACE_SECONDS = 10.0


class _Expired(BaseException):
    """Not an `Exception`, which the code that is to be stopped may catch."""


def within(seconds: float | None, call: Callable[[], T], fault: UserError) -> T:
    """`call()`, or `fault` once it has taken `seconds`; None sets no limit.

    Raises:
        UserError: `fault`.
    """
    if seconds is None:
        return call()
    clock = _Clock(seconds, fault)
    try:
        clock.start()
        try:
            return call()
        finally:
            clock.running = False  # from here on the handler does nothing
    except _Expired:
        raise fault from None
    finally:
        clock.stop()


class _Clock:
    """Interrupts the thread that made it.

    Args:
        seconds: until then, above 0; infinity is as long as a thread can wait.
        fault: the last words of a process that cannot be interrupted.
    """

    def __init__(self, seconds: float, fault: UserError):
        self.seconds, self.fault = min(seconds, threading.TIMEOUT_MAX), fault
        self.running = self._due = False
        self._thread = threading.current_thread()
        self._signals = self._thread is threading.main_thread() and hasattr(signal, "pthread_kill")
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="time-limit", daemon=True)
        self._handler: signal._HANDLER = None

    def start(self) -> None:
        self.running = True
        if self._signals:
            self._handler = signal.signal(signal.SIGUSR2, self._expire)
        self._watcher.start()

    def stop(self) -> None:
        self._stopped.set()
        self._watcher.join()  # a signal it has sent has arrived by then, and is not met by another handler
        if self._signals:
            signal.signal(signal.SIGUSR2, self._handler or signal.SIG_DFL)

    def _expire(self, number: int, frame: FrameType | None) -> None:
        if not self._due:  # somebody else's signal
            if callable(self._handler):
                self._handler(number, frame)
        elif self.running:
            self.running = False
            raise _Expired

    def _watch(self) -> None:
        if self._stopped.wait(self.seconds):
            return
        self._due = True
        if self._signals:
            assert self._thread.ident is not None
            signal.pthread_kill(self._thread.ident, signal.SIGUSR2)
        if self._stopped.wait(GRACE_SECONDS):
            return
        print(
            f"instructlit: {self.fault}\n  it could not be interrupted, so the process ends",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(self.fault.status)

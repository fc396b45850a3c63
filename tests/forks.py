"""Runs that share one start: to import torch, Lightning and Transformers takes nine seconds of a core.

Nothing here imports them: a script calls `forked` when it has what all its runs need.
"""

import os
import signal
import sys


def forked(words: list[str], seconds: int) -> int | None:
    """Go on in a process of its own, which must be done before any thread is started.

    Args:
        words: the arguments of the command in that process, by which Lightning starts its other ranks.
        seconds: after which it is killed.

    Returns:
        None in the new process; in the old one, when the new one has ended, its exit status, of a signal negative.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.argv[1:] = words
    signal.alarm(seconds)
    return None

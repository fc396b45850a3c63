"""What the user reads of an exception: one message for a user error, a stack trace for a bug."""

import errno
import os
import pickle
import signal
import sys
import traceback

from instructlit.errors import (
    Ending,
    UserError,
    chain,
    extra_of,
    is_ending,
    is_lightnings_refusal,
    not_installed,
    pickled_kind,
)
from instructlit.terminal import harmless

DEBUG = "INSTRUCTLIT_DEBUG"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PLACE = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


def report(error: BaseException) -> int:
    """Print what `error` means to the user on stderr and return the exit status it deserves."""
    # On Ctrl-C Lightning shuts down in order and then exits with status 1.
    stopped = any(isinstance(cause, KeyboardInterrupt) for cause in chain(error))
    if isinstance(error, Ending):
        return int(error.code or 0)
    if is_ending(error):
        print("instructlit: stopped by SIGTERM", file=sys.stderr)
        return 128 + signal.SIGTERM
    if isinstance(error, BrokenPipeError):  # `instructlit … | head` is not an error
        sys.stderr.close()
        return 1
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    if stopped:
        print("instructlit: stopped at your request", file=sys.stderr)
        return 130
    message = explain(error)
    if message is None:
        if os.environ.get(DEBUG, "0") in ("", "0"):
            traceback.print_exception(error)
        return 1
    fault = next((cause for cause in chain(error) if isinstance(cause, UserError)), None)
    if fault is None or not fault.told:
        notes = [note for cause in chain(error) for note in getattr(cause, "__notes__", ())]
        print(harmless("\n".join([f"instructlit: {message}", *notes])), file=sys.stderr)  # files are quoted in it
    return fault.status if fault else 2


def explain(error: BaseException) -> str | None:
    """The message for a mistake the user can put right, or None for a bug in the program."""
    for cause in chain(error):
        if isinstance(cause, UserError):
            return str(cause)
    for cause in chain(error):
        if isinstance(cause, SystemExit):
            return str(_left_early(cause))
        if isinstance(cause, ModuleNotFoundError) and extra_of(cause.name or ""):
            return str(not_installed(cause))
        if is_lightnings_refusal(cause):
            return str(cause).strip()
        if isinstance(cause, pickle.UnpicklingError):
            return str(_holds_code(cause))
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            what = f"nothing more can be written: {cause.strerror}"
            return str(UserError(what, where=cause.filename, fix="free some space, then run the same command again"))
        if isinstance(cause, FileNotFoundError) and cause.filename is not None:
            return str(
                UserError(f"there is no file or folder `{cause.filename}`", fix=f"{DEBUG}=1 shows where it was needed")
            )
        if isinstance(cause, OSError) and cause.errno in NO_PLACE and cause.filename is not None:
            what = f"cannot be read or written: {cause.strerror}"
            return str(UserError(what, where=str(cause.filename), fix=f"{DEBUG}=1 shows where it was needed"))
    return None


def _holds_code(error: pickle.UnpicklingError) -> UserError:
    """The message for a checkpoint that holds more than data; torch's own advice is to run it as code."""
    kind = pickled_kind(error)
    return UserError(
        f"the checkpoint holds a {kind}, which is not data" if kind else f"the checkpoint: {error}",
        where="--ckpt_path",
        expected="only tensors, numbers, strings, and lists and dicts of them",
        fix="use a checkpoint that one of your own runs wrote; if that one needs it, add --weights_only false, "
        "which also runs any code in it",
    )


def _left_early(error: SystemExit) -> UserError:
    """The message where code that a command calls, such as a callback, exits as if the command had finished."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if "_sitebuiltins" not in frame.filename]  # where exit() itself is
    return UserError(
        f"exit({'' if error.code is None else repr(error.code)}) was called before the command had finished",
        where=f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None,
        expected="an exception where the code cannot continue",
    )

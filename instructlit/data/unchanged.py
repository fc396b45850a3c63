"""Detects that a file is no longer the one whose rows were counted and checked when the run began.

Rows are read again all through a run, from offsets noted at its start: if the file was written to, they
would silently be other rows. Checking size and time with every row costs a microsecond; only if they differ is the file
read again, and its hash decides.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from instructlit.errors import UserError

Stamp = tuple[int, int, int, int]
_EVERY_SECONDS = 1.0


def stamp(found: os.stat_result) -> Stamp:
    """A cheap identification of a file's state: device, inode, size in bytes, time of change in ns."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class WatchedFile:
    """A file that is read through a descriptor, with the hash of what it held when the run began.

    Args:
        path: the file.
        sha256: hash of its bytes at that time.
        seen: its stamp, taken before they were read.
    """

    def __init__(self, path: str, sha256: str, seen: Stamp):
        self.path, self.sha256, self._seen = path, sha256, seen
        self._told = False

    def open(self) -> int:
        """A descriptor for reading.

        Raises:
            UserError: if the file no longer exists or cannot be opened.
        """
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise changed(self.path, f"can no longer be opened: {error.strerror}") from error

    def check(self, descriptor: int) -> None:
        """To be called after each read: data read before a change was noticed may be old or new.

        Raises:
            UserError: if the content differs from that at the start; says what is different.
        """
        found = os.fstat(descriptor)
        now = stamp(found)
        if now != self._seen:
            with open(descriptor, "rb", closefd=False) as file:
                file.seek(0)
                content = hashlib.file_digest(file, "sha256").hexdigest()
            if content != self.sha256:
                raise changed(self.path, _difference(self._seen, now))
            self._seen = now  # touched, or replaced by an identical copy
        if not found.st_nlink and not self._told:
            self._told = True
            rank_zero_warn(
                f"{self.path} was removed or replaced while the run was reading it. The run continues with the file it "
                "has opened; put that file back before you resume the run."
            )


class WatchedFolder:
    """Files that are mapped into memory, where changing their bytes changes the rows.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]):
        self._seen = {str(path): stamp(path.stat()) for path in paths}
        self._looked = 0.0

    def check(self) -> None:
        """Checks at most once a second, as there may be thousands. A file that is removed or replaced stays mapped.

        Raises:
            UserError: if a file was written to since the start.
        """
        if time.monotonic() - self._looked < _EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        for path, seen in self._seen.items():
            try:
                now = stamp(os.stat(path))
            except OSError:
                continue
            if now[:2] == seen[:2] and now != seen:
                raise changed(path, _difference(seen, now))


def changed(path: str, what: str) -> UserError:
    """The error for a file that has changed."""
    return UserError(
        f"the file {what}",
        where=path,
        expected="the file as it was when the run began, whose rows were counted and checked then",
        fix="put it back and resume from the last checkpoint, or start a new run with the file as it is",
    )


def _difference(seen: Stamp, now: Stamp) -> str:
    if now[:2] != seen[:2]:
        return "was replaced by another while the run was reading it"
    if now[2] != seen[2]:
        return f"was changed while the run was reading it: it has {now[2]:,} bytes and had {seen[2]:,}"
    return "was changed while the run was reading it: it has the same size, but different content"

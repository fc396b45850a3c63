"""Saves the results of a long job as they are finished, so that a restart repeats none of them."""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from instructlit.errors import UserError


def partial_file(output: str | Path) -> Path:
    """The journal of a file that is written only once all its rows are there."""
    path = Path(output)
    return path.with_name(f"{path.stem}.partial.jsonl")


class Journal:
    """Results by key in an append-only file; a line cut short by a kill does not count.

    Args:
        path: the file, made with the first result.
        identity: all that determines the results; a journal with another identity is refused.

    Raises:
        UserError: the file was started with other options, or is not a journal.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self._identity = path, identity
        whole = 0
        lines: list[Any] = []
        there = path.read_bytes() if path.exists() else b""
        for line in there.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            lines.append(self._parse(line))
        if lines and lines[0] != json.loads(json.dumps(identity)):
            raise self._other(lines[0], identity)
        self._found: dict[str, Any] = dict(lines[1:])
        self._size, self._whole = len(there), whole  # bytes, and those of the lines that are complete
        self._file: BinaryIO | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def put(self, key: str, value: Any) -> None:
        """Keeps a result; it is on disk when this returns.

        Raises:
            UserError: with the first result, if another process is writing the file.
        """
        if self._file is None:
            self._file = self._begin()
        self._append(self._file, [key, value])
        self._found[key] = value

    def close(self, remove: bool = False) -> None:
        """Closes the file, and with `remove` deletes it."""
        if self._file is not None:
            self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _begin(self) -> BinaryIO:
        """The file, opened after its last complete line, with the identity first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab")
        if not _locked(file) or os.fstat(file.fileno()).st_size != self._size:
            file.close()
            raise UserError(
                "another process is writing it, or has done so since this one started",
                where=str(self.path),
                fix="wait until that one has ended, or choose another --output",
            )
        file.truncate(self._whole)
        if not self._whole:
            self._append(file, self._identity)
        return file

    @staticmethod
    def _append(file: BinaryIO, value: Any) -> None:
        file.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())

    def _parse(self, line: bytes) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise UserError(
                "is not the journal of an interrupted run", where=str(self.path), fix="remove it"
            ) from error

    def _other(self, before: Any, now: dict[str, Any]) -> UserError:
        old = before if isinstance(before, dict) else {}
        changed = sorted(name for name in {*old, *now} if old.get(name) != now.get(name))
        return UserError(
            f"is from an interrupted run with other options: {', '.join(changed)} changed",
            where=str(self.path),
            fix="use the same options as before, or remove the file to start from scratch",
        )


def _locked(file: BinaryIO) -> bool:
    """Whether this process may write the file: it has the lock, until it closes the file or ends, or there are none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        pass
    return True

"""Pieces of a long piece of work, kept as they are finished, so that a second start repeats none of them."""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from instructlit.errors import UserError


def partial_file(output: str | Path) -> Path:
    """Where the journal of a file lies that is not written before all of it is there."""
    path = Path(output)
    return path.with_name(f"{path.stem}.partial.jsonl")


class Journal:
    """Results by key in a file that only grows; the line that a kill has cut short does not count.

    Args:
        path: the file, made with the first result.
        identity: what decides the results; a journal of another identity is refused.

    Raises:
        UserError: the file was begun with other options, or is none of ours.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path, self._identity = path, identity
        whole = 0
        lines: list[Any] = []
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                lines.append(self._parse(line))
        if lines and lines[0] != json.loads(json.dumps(identity)):
            raise self._other(lines[0], identity)
        self._found: dict[str, Any] = dict(lines[1:])
        self._whole = whole  # bytes of the lines that are complete
        self._file: BinaryIO | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def put(self, key: str, value: Any) -> None:
        """Keeps a result; it is on disk when this returns."""
        if self._file is None:
            self._file = self._begin()
        self._append(self._file, [key, value])
        self._found[key] = value

    def close(self, remove: bool = False) -> None:
        """Closes the file, and removes it where all of it has gone into something else."""
        if self._file is not None:
            self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _begin(self) -> BinaryIO:
        """The file, opened behind its last whole line, with the identity first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab")
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
            raise UserError("not a journal of an interrupted run", where=str(self.path), fix="remove it") from error

    def _other(self, before: Any, now: dict[str, Any]) -> UserError:
        old = before if isinstance(before, dict) else {}
        changed = sorted(name for name in {*old, *now} if old.get(name) != now.get(name))
        return UserError(
            f"an interrupted run with other options lies here: {', '.join(changed)} changed",
            where=str(self.path),
            fix="give the options of before, or remove the file and begin anew",
        )

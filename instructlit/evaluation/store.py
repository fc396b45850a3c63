"""All replies and verdicts so far, one JSON object per line, written at once: a killed evaluation repeats no call."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructlit.errors import UserError


class Store:
    """A dictionary kept in a file.

    If the process was killed, the last line may be cut off; it is dropped, and its question is asked again.

    Args:
        path: the file; created with the first value.

    Raises:
        UserError: another line is not one that an evaluation wrote.
    """

    def __init__(self, path: Path):
        self.path = path
        self._values: dict[str, Any] = {}
        self._file: Any = None
        if path.exists():
            self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any:
        """The value of a key, or None."""
        return self._values.get(key)

    def put(self, key: str, value: Any, **told: Any) -> None:
        """Store a value; `told` is written with it for people who read the file."""
        self._values[key] = value
        line = json.dumps({"key": key, **told, "value": value}, ensure_ascii=False)
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}", where="--output") from error

    def close(self) -> None:
        """Close the file; another `put` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
                self._values[row["key"]] = row["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    "is not a line that an evaluation wrote",
                    where=f"{self.path}:{number}",
                    expected="an object with key and value",
                    fix="restore the file, or choose another --output",
                ) from error
        if whole < len(data):
            os.truncate(self.path, whole)

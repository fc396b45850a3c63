"""Tables of numbers in a folder: written a row at a time, read as arrays that are mapped from disk."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from instructlit.data.rows import file_hash
from instructlit.errors import UserError

_MANIFEST = "manifest.json"
_BUFFER = 1 << 20


class Table:
    """One table that is being written.

    Args:
        path: its file.
    """

    def __init__(self, path: Path):
        self._file, self._buffer, self._digest, self.size = path.open("wb"), bytearray(), hashlib.sha256(), 0

    def add(self, rows: bytes) -> None:
        """Append rows as they lie in memory, little-endian."""
        self._buffer += rows
        self.size += len(rows)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def close(self) -> dict[str, Any]:
        """Write what is left; bytes and hash of the whole."""
        self._flush()
        self._file.close()
        return {"bytes": self.size, "sha256": self._digest.hexdigest()}

    def _flush(self) -> None:
        self._digest.update(self._buffer)
        self._file.write(self._buffer)
        self._buffer.clear()


class Writer:
    """Makes the tables of one folder.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._tables: dict[str, Table] = {}

    def table(self, name: str) -> Table:
        """A new, empty table."""
        self._tables[name] = Table(self.folder / f"{name}.bin")
        return self._tables[name]

    def finish(self, facts: dict[str, Any]) -> None:
        """Close all tables and write down what they and the `facts`, which JSON must know, are."""
        tables = {name: table.close() for name, table in self._tables.items()}
        (self.folder / _MANIFEST).write_text(json.dumps({"tables": tables, "facts": facts}), encoding="utf-8")


class Store:
    """The tables of a folder. Pickled, it is the folder's name: a worker process maps the files itself.

    Args:
        folder: where a `Writer` has finished.
        temporary: the folder's owner, where it is to go with this object.
    """

    def __init__(self, folder: Path, temporary: tempfile.TemporaryDirectory[str] | None = None):
        self.folder, self._temporary = folder, temporary
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        self._tables, self.facts = manifest["tables"], manifest["facts"]
        self._mapped: dict[str, np.ndarray] = {}

    @property
    def size(self) -> int:
        """Bytes of all tables."""
        return sum(table["bytes"] for table in self._tables.values())

    def table(self, name: str, dtype: Any) -> np.ndarray:
        """A table (rows,) of that type, read-only.

        Raises:
            UserError: its file is gone.
        """
        if name not in self._mapped:
            path = self.folder / f"{name}.bin"
            with explained(path):
                empty = not self._tables[name]["bytes"]
                self._mapped[name] = np.zeros(0, dtype) if empty else np.memmap(path, dtype, "r").view(np.ndarray)
        return self._mapped[name]

    def faults(self) -> Iterator[str]:
        """Tables that are not what was written: one file after the other is read whole."""
        for name, told in self._tables.items():
            path = self.folder / f"{name}.bin"
            if not path.is_file() or path.stat().st_size != told["bytes"]:
                yield f"{path.name} has not the {told['bytes']:,} bytes that were written"
                continue
            if file_hash(str(path)) != told["sha256"]:
                yield f"{path.name} has other bytes than were written"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_temporary": None, "_mapped": {}}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """An error of the system about the file of a store, as a message.

    Raises:
        UserError: for any `OSError` within.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the file for the ids of the data is of no use: {error.strerror}",
            where=str(path),
            expected="four bytes a token of room there, and that nobody clears the folder during the run",
            fix="set INSTRUCTLIT_CACHE (or, with INSTRUCTLIT_CACHE=off, TMPDIR) to a folder that has both",
        ) from error

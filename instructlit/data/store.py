"""Tables of numbers in a folder: written a row at a time, read as memory-mapped arrays."""

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
        """Appends rows as raw bytes, little-endian."""
        self._buffer += rows
        self.size += len(rows)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def close(self) -> dict[str, Any]:
        """Writes what is left; returns size and hash of the file."""
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
        """Closes all tables and records them and the `facts`, which must be JSON values."""
        tables = {name: table.close() for name, table in self._tables.items()}
        (self.folder / _MANIFEST).write_text(json.dumps({"tables": tables, "facts": facts}), encoding="utf-8")


class Store:
    """The tables of a folder. Pickling keeps only the folder's name: a worker process maps the files itself.

    Args:
        folder: a folder completed by a `Writer`.
        temporary: the folder's owner, if the folder is to be removed with this object.
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
            UserError: if its file is missing.
        """
        if name not in self._mapped:
            path = self.folder / f"{name}.bin"
            with explained(path):
                empty = not self._tables[name]["bytes"]
                self._mapped[name] = np.zeros(0, dtype) if empty else np.memmap(path, dtype, "r").view(np.ndarray)
        return self._mapped[name]

    def faults(self) -> Iterator[str]:
        """Damaged tables: every file is read completely."""
        for name, told in self._tables.items():
            path = self.folder / f"{name}.bin"
            if not path.is_file() or path.stat().st_size != told["bytes"]:
                yield f"{path.name} does not have the {told['bytes']:,} bytes that were written"
                continue
            if file_hash(str(path)) != told["sha256"]:
                yield f"{path.name} differs from what was written"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_temporary": None, "_mapped": {}}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a system error about a file of a store into a message.

    Raises:
        UserError: for any `OSError` within.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the file for the token ids cannot be used: {error.strerror}",
            where=str(path),
            expected="four bytes of free space per token, and a folder that is not cleared during the run",
            fix="set INSTRUCTLIT_CACHE (or, with INSTRUCTLIT_CACHE=off, TMPDIR) to such a folder",
        ) from error

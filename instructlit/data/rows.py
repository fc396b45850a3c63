"""What every reader of a file has in common: its rows, one at a time, and the location of each for messages."""

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any

from instructlit.data.sources import Source
from instructlit.errors import UserError


class Rows(ABC):
    """A file's rows. `rows[i]` is a dict; `where(i)` names the row in messages."""

    def __init__(self, source: Source, path: str):
        self.source, self.path = source, path

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @abstractmethod
    def where(self, index: int) -> str:
        """File and line (or row) of row `index`."""

    @abstractmethod
    def sha256(self) -> str:
        """Hash of the bytes that were read when the run began, for the model's lineage."""

    def _as_row(self, value: Any, index: int) -> dict[str, Any]:
        """A row, which must have fields."""
        if not isinstance(value, dict):
            raise UserError(f"found {type(value).__name__}", where=self.where(index), expected="an object with fields")
        return value


def file_hash(path: str) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_hash(value: Any) -> str:
    """The first 64 bits of the SHA-256 of plain JSON values, in hex: enough to distinguish states."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def no_rows(path: str) -> UserError:
    """The error for a file without rows."""
    return UserError("no rows", where=path, expected="at least one row")

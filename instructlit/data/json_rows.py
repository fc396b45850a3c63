"""Rows of JSON: lines, each read from disk by its offset when it is needed, and an array, which is read whole (use JSON
Lines if that takes too much memory).
"""

import hashlib
import json
import os
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from instructlit.data.progress import progress
from instructlit.data.rows import Rows, no_rows
from instructlit.data.sources import Source
from instructlit.data.unchanged import WatchedFile, changed, stamp
from instructlit.errors import UserError

_CHUNK = 1 << 22


class JsonLines(Rows):
    """One JSON object per line, read by position: memory grows with the number of lines, not with the file.

    Reading a row of a file that has changed since raises a `UserError`.
    """

    def __init__(self, source: Source, path: str):
        super().__init__(source, path)
        seen = stamp(os.stat(path))
        self._breaks, self._lines, sha256 = _line_index(path)
        self._watched = WatchedFile(path, sha256, seen)
        self._file: tuple[int, int] | None = None  # process id, file descriptor

    def __len__(self) -> int:
        return len(self._breaks) if self._lines is None else len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, descriptor = self._line(index), self._descriptor()
        start = int(self._breaks[number - 1]) + 1 if number else 0
        try:
            line = os.pread(descriptor, int(self._breaks[number]) - start, start)
            self._watched.check(descriptor)
        except OSError as error:
            raise changed(self.path, f"can no longer be read: {error.strerror}") from error
        return self._as_row(parse(line, self.where(index)), index)

    def where(self, index: int) -> str:
        return f"{self.path}:{self._line(index) + 1}"

    def _line(self, index: int) -> int:
        """Which line of the file row `index` is, from 0."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return index % len(self) if self._lines is None else int(self._lines[index])

    def _descriptor(self) -> int:
        """A file descriptor of this process: each worker has its own."""
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), self._watched.open())
        return self._file[1]

    def sha256(self) -> str:
        return self._watched.sha256

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        opened = getattr(self, "_file", None)
        if opened is not None and opened[0] == os.getpid():
            os.close(opened[1])


class JsonArray(Rows):
    """A JSON file that is one array of objects."""

    def __init__(self, source: Source, path: str):
        super().__init__(source, path)
        content = Path(path).read_bytes()
        self._rows, self._sha256 = parse(content, path), hashlib.sha256(content).hexdigest()
        if not isinstance(self._rows, list):
            raise UserError(f"found {type(self._rows).__name__}", where=path, expected="an array of objects")
        if not self._rows:
            raise no_rows(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._as_row(self._rows[index], index)

    def where(self, index: int) -> str:
        """Reads the file again to find the line, for errors only; by then the file may have changed."""
        try:
            line = f"{_line_of_element(Path(self.path).read_text(encoding='utf-8-sig'), index)} "
        except (OSError, ValueError, IndexError):
            line = ""
        return f"{self.path}:{line}(record {index + 1})"

    def sha256(self) -> str:
        return self._sha256


def decoded(data: bytes, where: str) -> str:
    """The text of bytes in UTF-8, without a byte order mark.

    Raises:
        UserError: if they are in another encoding.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8", where=where, expected="UTF-8 text") from error


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object except those that are null, which pandas and `datasets` write for empty cells of a
    table.
    """
    found = {}
    for name, value in pairs:
        if name in found:
            raise UserError("the field occurs twice", where=name, expected="every field once")
        found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def parse(data: bytes, where: str) -> Any:
    """The value of some JSON, without fields that are null.

    Raises:
        UserError: if it is not valid JSON, or exceeds Python's limits; names the position.
    """
    text = decoded(data, where)
    try:
        return json.loads(text, object_pairs_hook=_fields)
    except UserError as error:
        raise error.at(f"{where}: {error.where}") from error
    except json.JSONDecodeError as error:
        shown = data[:60].decode("utf-8", "replace").strip()
        raise UserError(
            f"not JSON ({error.msg} at character {error.pos + 1}): {shown}{'…' if len(data) > 60 else ''}",
            where=where,
            expected="one complete JSON object per line (.jsonl) or an array of objects (.json)",
        ) from error
    except RecursionError as error:
        raise UserError("the JSON is nested too deeply", where=where, expected="an object with fields") from error
    except ValueError as error:  # only one of Python's is left
        digits = f"{sys.get_int_max_str_digits():,} digits"
        raise UserError("a number has too many digits", where=where, expected=f"at most {digits}") from error


def _line_of_element(text: str, index: int) -> int:
    """The line on which element `index` of a JSON array begins, from 1."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    for element in range(index + 1):
        while text[position] in " \t\r\n,":
            position += 1
        if element < index:
            _, position = decoder.raw_decode(text, position)
    return text.count("\n", 0, position) + 1


def _line_index(path: str) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Where each line ends (int64), which are not blank (int64, from 0; None if no line is blank), and the SHA-256 of
    the file; one pass, in chunks.
    """
    found, position, digest = array("q"), 0, hashlib.sha256()
    size = os.stat(path).st_size
    with open(path, "rb") as file, progress(f"{path}: finding lines", size, "bytes") as show:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            found.frombytes((np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == 10) + position).tobytes())
            position += len(chunk)
            show(position)
        if not found or found[-1] < position - 1:
            found.append(position)
        breaks = np.frombuffer(found, dtype=np.int64)
        blank = []
        for i in np.flatnonzero(np.diff(breaks, prepend=-1) <= 17).tolist():  # short enough to be only whitespace
            start = int(breaks[i - 1]) + 1 if i else 0
            file.seek(start)
            if not file.read(int(breaks[i]) - start).strip():
                blank.append(i)
    if len(blank) == len(breaks):
        raise UserError("the file contains only blank lines", where=path, expected="at least one row")
    return breaks, np.delete(np.arange(len(breaks)), blank) if blank else None, digest.hexdigest()

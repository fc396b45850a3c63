"""Rows of a file, one at a time. JSON Lines keeps the offsets of its lines and reads a line when it is asked for;
Parquet, CSV, TSV and `datasets` folders are Arrow tables mapped from disk; a JSON array is read whole (write JSON Lines
where that hurts).
"""

import csv
import hashlib
import json
import os
import sys
from abc import ABC, abstractmethod
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from instructlit.data.hub import PATIENCE
from instructlit.data.progress import progress
from instructlit.data.sources import Source, expand, is_dataset_folder, is_hub_name
from instructlit.data.unchanged import WatchedFile, WatchedFolder, changed, stamp
from instructlit.errors import UserError

_CHUNK = 1 << 22
_CELLS: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}
"""How the text of a table is cut into cells, by the file's ending; in .tsv a quotation mark is one like any other."""
_LISTS_IN_CELLS = ("completions", "ranks", "ratings", "flags", "policy", "models", "messages", "conversations")
_MESSAGES_IN_CELLS = ("prompt", "completion", "chosen", "rejected")


class Rows(ABC):
    """A file's rows. `rows[i]` is a dict; `where(i)` names the row for a person."""

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
        """Hash of the bytes that were read when the run began, for the record of what a model was made from."""

    def _as_row(self, value: Any, index: int) -> dict[str, Any]:
        """A row, which must have fields."""
        if not isinstance(value, dict):
            raise UserError(f"found {type(value).__name__}", where=self.where(index), expected="an object with fields")
        return value


class JsonLines(Rows):
    """One JSON object a line, read by position: memory grows with the number of lines, not with the file.

    A row of a file that has changed since is a `UserError`.
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
            raise changed(self.path, f"cannot be read any more: {error.strerror}") from error
        return self._as_row(_parse(line, self.where(index)), index)

    def where(self, index: int) -> str:
        return f"{self.path}:{self._line(index) + 1}"

    def _line(self, index: int) -> int:
        """Which line of the file row `index` is, from 0."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return index % len(self) if self._lines is None else int(self._lines[index])

    def _descriptor(self) -> int:
        """An open file of this process: workers read through their own."""
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
        self._rows, self._sha256 = _parse(content, path), hashlib.sha256(content).hexdigest()
        if not isinstance(self._rows, list):
            raise UserError(f"found {type(self._rows).__name__}", where=path, expected="an array of objects")
        if not self._rows:
            raise _no_rows(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._as_row(self._rows[index], index)

    def where(self, index: int) -> str:
        """The line is found by reading the file once more, which only errors do; by then it may be another."""
        try:
            line = f"{_line_of_element(Path(self.path).read_text(encoding='utf-8-sig'), index)} "
        except (OSError, ValueError, IndexError):
            line = ""
        return f"{self.path}:{line}(record {index + 1})"

    def sha256(self) -> str:
        return self._sha256


class Table(Rows):
    """A Parquet, CSV or TSV file, a `datasets` folder or a dataset of the Hub, as an Arrow table mapped from disk."""

    def __init__(self, source: Source, path: str):
        super().__init__(source, path)
        self._is_text = Path(path).suffix.lower() in _CELLS
        self._sha256 = file_hash(path) if Path(path).is_file() else None
        self._table = _load_table(source, path, self._sha256)
        # What `datasets` wrote is mapped as it lies; of any other file it has made a copy in its cache.
        self._arrow_files = _arrow_files(Path(path))
        self._watched = WatchedFolder(self._arrow_files)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._watched.check()
        row = self._as_row(_without_none(self._table[index]), index)
        return self._from_cells(row, index) if self._is_text else row

    def where(self, index: int) -> str:
        return f"{self.path}: row {index + 1}"

    def sha256(self) -> str:
        """Hash of the file, or of a folder's Arrow files; of a Hub dataset, its fingerprint."""
        if self._sha256 is None:
            told = self._table._fingerprint
            if self._arrow_files:
                told = "".join(file_hash(str(p)) for p in self._arrow_files)
            self._sha256 = hashlib.sha256(told.encode()).hexdigest()
        return self._sha256

    def _from_cells(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        """Cells are text; lists stand in a cell as JSON. An empty cell of an optional field is no value."""
        for key, cell in list(row.items()):
            if key in _LISTS_IN_CELLS and cell.startswith("["):
                row[key] = _parse(cell.encode(), f"{self.where(index)}: {key}")
            elif key in _MESSAGES_IN_CELLS:
                row[key] = _messages_or_text(cell)
            elif cell == "" and key not in ("text", "output", "input"):
                del row[key]
            elif key == "weight":
                with suppress(ValueError):  # what is no number is told with the field
                    row[key] = float(cell)
        return row


def _arrow_files(folder: Path) -> list[Path]:
    """The files that the data set of a folder is made of, sorted: beside them lies what other programs have made of it.
    Of any other path none.
    """
    states = {state.parent: json.loads(state.read_text(encoding="utf-8")) for state in folder.rglob("state.json")}
    return sorted(parent / part["filename"] for parent, state in states.items() for part in state["_data_files"])


def _messages_or_text(cell: str) -> Any:
    """A cell as the messages that it lists in JSON (or the one of ShareGPT), else as the text it is."""
    if not cell.startswith(("[", "{")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    messages = value if isinstance(value, list) else [value]
    keys = {"role", "content"} if isinstance(value, list) else {"from", "value"}
    return value if messages and all(isinstance(m, dict) and keys <= m.keys() for m in messages) else cell


def _without_none(value: Any) -> Any:
    """Arrow fills every field that some other row has; None is "no such field" again."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def open_source(source: Source, option: str) -> list[Rows]:
    """Every file of a source, ready to be read.

    Raises:
        UserError: a file that is missing, empty, binary, or not what its ending says.
    """
    return [_open(source, path) for path in expand(source, option)]


def file_hash(path: str) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(source: Source, path: str) -> Rows:
    for name, found in (("subset", source.subset), ("split", None if is_dataset_folder(Path(path)) else source.split)):
        if found and Path(path).exists():
            raise UserError(
                f"found {found!r}",
                where=f"source {path}: {name}",
                expected=f"none: the path has no {name}s",
                fix=f"take `{name}` away, or name the file that holds it",
            )
    if not Path(path).is_file():
        return Table(source, path)
    if not Path(path).stat().st_size:
        raise UserError("the file is empty", where=path, expected="at least one row")
    if Path(path).suffix.lower() == ".parquet":
        return Table(source, path)
    with open(path, "rb") as file:
        head = file.read(4096)
    if b"\0" in head:
        raise UserError("the file is binary, or text in another encoding than UTF-8", where=path, expected="UTF-8 text")
    if Path(path).suffix.lower() in _CELLS:
        return Table(source, path)
    # A .json file may hold an array, or lines after all; its first character tells.
    if path.lower().endswith(".json") and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
        return JsonArray(source, path)
    return JsonLines(source, path)


def _no_rows(path: str) -> UserError:
    return UserError("no rows", where=path, expected="at least one row")


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8", where=where, expected="UTF-8 text") from error


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object of JSON but those that are null, as the lines that pandas and `datasets` write of a table
    have them.
    """
    found = {}
    for name, value in pairs:
        if name in found:
            raise UserError("the field is there twice", where=name, expected="every field once")
        found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def _parse(data: bytes, where: str) -> Any:
    text = _decoded(data, where)
    try:
        return json.loads(text, object_pairs_hook=_fields)
    except UserError as error:
        raise UserError(error.what, where=f"{where}: {error.where}", expected=error.expected) from error
    except json.JSONDecodeError as error:
        shown = data[:60].decode("utf-8", "replace").strip()
        raise UserError(
            f"not JSON ({error.msg} at character {error.pos + 1}): {shown}{'…' if len(data) > 60 else ''}",
            where=where,
            expected="one whole JSON object a line (.jsonl) or an array of objects (.json)",
        ) from error
    except RecursionError as error:
        raise UserError("JSON nested too deeply", where=where, expected="an object with fields") from error
    except ValueError as error:  # the one that is left, of Python's
        digits = f"{sys.get_int_max_str_digits():,} digits"
        raise UserError("a number is too long to be read", where=where, expected=f"at most {digits}") from error


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
    """Where each line ends (int64), which lines are not blank (int64, from 0; None where all are), and the SHA-256 of
    the file; one pass, a chunk at a time.
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
        for i in np.flatnonzero(np.diff(breaks, prepend=-1) <= 17).tolist():  # short enough to be nothing but blanks
            start = int(breaks[i - 1]) + 1 if i else 0
            file.seek(start)
            if not file.read(int(breaks[i]) - start).strip():
                blank.append(i)
    if len(blank) == len(breaks):
        raise UserError("the file holds nothing but blank lines", where=path, expected="at least one row")
    return breaks, np.delete(np.arange(len(breaks)), blank) if blank else None, digest.hexdigest()


def _columns(path: str, cells: dict[str, Any], whole: bool) -> list[str]:
    """The names in the first line of a table, each of which is there once.

    Args:
        path: the file.
        cells: how it is cut into cells.
        whole: see to it that there are rows and every one has as many: a comma that is not in quotes would move the
            others to columns that are not theirs.
    """
    limit = csv.field_size_limit((1 << 31) - 1)  # texts may be longer than the 128 KiB that a cell has by default
    line = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, **cells)
            columns = next(reader)
            if twice := {name for name in columns if name and columns.count(name) > 1}:
                raise UserError(
                    f"the names {', '.join(sorted(twice))} are there twice",
                    where=f"{path}:1",
                    expected="every name once",
                )
            filled, line = not whole, reader.line_num + 1
            for row in reader if whole else ():
                if row and len(row) != len(columns):
                    raise UserError(
                        f"found {len(row)} cells under {len(columns)} names",
                        where=f"{path}:{line}",
                        expected="a cell for every name in the first line",
                        fix="put text that holds a comma, a quote or a line break in double quotes; .tsv has no way to "
                        "hold a tab or a line break",
                    )
                filled, line = filled or bool(row), reader.line_num + 1
            if not filled:
                raise _no_rows(path)
    except UnicodeDecodeError:
        with open(path, "rb") as file:
            for line, data in enumerate(file, start=1):
                _decoded(data, f"{path}:{line}")
        raise  # never: one of the lines is not UTF-8
    except csv.Error as error:
        raise UserError(f"not CSV ({error})", where=f"{path}:{line}", expected="every quote closed") from error
    finally:
        csv.field_size_limit(limit)
    return columns


def _ask_hub(name: str) -> None:
    """Fails soon where the Hub has no such dataset or does not answer, where `datasets` would go on trying."""
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        HfApi().dataset_info(name, timeout=PATIENCE)


def _load_table(source: Source, path: str, sha256: str | None) -> Any:
    """The Arrow table of a source; `sha256` is of its bytes where it is a file."""
    import datasets
    from datasets import config

    datasets.disable_progress_bars()
    # `datasets` tells its copies of files apart by path and time alone, which another content may have too.
    copies = str(Path(config.HF_DATASETS_CACHE) / f"instructlit-{sha256}")
    wanted = source.split or "train"
    try:
        if is_dataset_folder(Path(path)):
            table = datasets.load_from_disk(path, keep_in_memory=False)
        elif path.lower().endswith(".parquet"):
            table = datasets.Dataset.from_parquet(path, cache_dir=copies)
        elif (cells := _CELLS.get(Path(path).suffix.lower())) is not None:
            # Everything as text: a completion "42" or "NA" is not a number or a gap. A column without a name, such as
            # the index that pandas writes, has the name that pandas gives it when it reads.
            columns = _columns(path, cells, whole=not Path(copies).exists())  # what has a copy was looked through then
            names = [name or f"Unnamed: {i}" for i, name in enumerate(columns)]
            features = datasets.Features(dict.fromkeys(names, datasets.Value("string")))
            table = datasets.Dataset.from_csv(path, features=features, cache_dir=copies, keep_default_na=False, **cells)
        else:
            _ask_hub(path)
            table = datasets.load_dataset(path, source.subset, split=wanted)
    except UserError:
        raise
    except Exception as error:  # pyarrow, pandas, fsspec and the Hub client all raise their own kinds
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        hub = is_hub_name(path) and not Path(path).exists()
        raise UserError(
            f"could not be read: {reason}",
            where=path,
            expected="an existing file, or a dataset of the Hub and a way to reach it" if hub else "a whole file",
            fix="with HF_HUB_OFFLINE=1 a dataset that was loaded before comes from the cache" if hub else None,
        ) from error
    if isinstance(table, datasets.DatasetDict):
        if wanted not in table:
            raise UserError(
                f"no split {wanted!r}", where=path, expected=f"one of {', '.join(map(str, table))}", fix="set `split`"
            )
        table = table[wanted]
    elif source.split and str(table.split) != source.split:
        is_one = f"the one that it is, {table.split}" if table.split else "none: the folder is not parted into splits"
        raise UserError(f"no split {wanted!r}", where=path, expected=is_one, fix="take `split` away")
    if not len(table):
        raise _no_rows(path)
    return table

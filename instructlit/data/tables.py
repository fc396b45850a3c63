"""Rows of tables: Parquet, CSV and TSV files, `datasets` folders and Hub datasets, as memory-mapped Arrow tables."""

import csv
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from instructlit.data.hub import PATIENCE
from instructlit.data.json_rows import decoded, parse
from instructlit.data.rows import Rows, file_hash, no_rows
from instructlit.data.sources import Source, is_dataset_folder, is_hub_name
from instructlit.data.unchanged import WatchedFolder
from instructlit.errors import UserError, first_line

CELLS: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}
"""How the text of a table is split into cells, by the file's suffix; in .tsv a quote is an ordinary character."""
DEFAULT_SPLIT = "train"
_LISTS_IN_CELLS = ("completions", "ranks", "ratings", "flags", "policy", "models", "messages", "conversations")
_MESSAGES_IN_CELLS = ("prompt", "completion", "chosen", "rejected")


class Table(Rows):
    """A Parquet, CSV or TSV file, a `datasets` folder or a dataset on the Hub, as a memory-mapped Arrow table."""

    def __init__(self, source: Source, path: str):
        super().__init__(source, path)
        self._is_text = Path(path).suffix.lower() in CELLS
        self._sha256 = file_hash(path) if Path(path).is_file() else None
        self._table = _load_table(source, path, self._sha256)
        # What `datasets` wrote is mapped directly; it copies any other file to its cache.
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
        """Cells are text; lists are JSON in a cell. An empty cell of an optional field means no value."""
        for key, cell in list(row.items()):
            if key in _LISTS_IN_CELLS and cell.startswith("["):
                row[key] = parse(cell.encode(), f"{self.where(index)}: {key}")
            elif key in _MESSAGES_IN_CELLS:
                row[key] = _messages_or_text(cell)
            elif cell == "" and key not in ("text", "output", "input"):
                del row[key]
            elif key == "weight":
                with suppress(ValueError):  # a value that is not a number is reported with the field
                    row[key] = float(cell)
        return row


def _arrow_files(folder: Path) -> list[Path]:
    """The files of the dataset in a folder, sorted, without caches that other programs have left there. None for any
    other path.
    """
    states = {state.parent: json.loads(state.read_text(encoding="utf-8")) for state in folder.rglob("state.json")}
    return sorted(parent / part["filename"] for parent, state in states.items() for part in state["_data_files"])


def _messages_or_text(cell: str) -> Any:
    """A cell as the messages that it lists in JSON (or the one message of ShareGPT), otherwise as text."""
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
    """Arrow gives every row the fields of all others; removes those that are None."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _columns(path: str, cells: dict[str, Any], whole: bool) -> list[str]:
    """The names in the first line of a table, which must be unique.

    Args:
        path: the file.
        cells: how it is split into cells.
        whole: check that there are rows and that each has that many cells: an unquoted comma would move the others
            to the wrong columns.
    """
    limit = csv.field_size_limit((1 << 31) - 1)  # texts may be longer than the 128 KiB that a cell has by default
    line = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, **cells)
            columns = next(reader)
            if twice := {name for name in columns if name and columns.count(name) > 1}:
                raise UserError(
                    f"the names {', '.join(sorted(twice))} occur twice",
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
                raise no_rows(path)
    except UnicodeDecodeError:
        with open(path, "rb") as file:
            for line, data in enumerate(file, start=1):
                decoded(data, f"{path}:{line}")
        raise  # not reached: one of the lines is not UTF-8
    except csv.Error as error:
        raise UserError(f"not CSV ({error})", where=f"{path}:{line}", expected="every quote closed") from error
    finally:
        csv.field_size_limit(limit)
    return columns


def _ask_hub(name: str) -> None:
    """Fails early if the Hub has no such dataset or does not answer; `datasets` would keep trying."""
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        HfApi().dataset_info(name, timeout=PATIENCE)


def _load_table(source: Source, path: str, sha256: str | None) -> Any:
    """The Arrow table of a source; `sha256` is that of its bytes if it is a file."""
    import datasets
    from datasets import config

    datasets.disable_progress_bars()
    # `datasets` identifies its copies by path and time only, which other content may share.
    copies = str(Path(config.HF_DATASETS_CACHE) / f"instructlit-{sha256}")
    try:
        if is_dataset_folder(Path(path)):
            table = datasets.load_from_disk(path, keep_in_memory=False)
        elif path.lower().endswith(".parquet"):
            table = datasets.Dataset.from_parquet(path, cache_dir=copies)
        elif (cells := CELLS.get(Path(path).suffix.lower())) is not None:
            # Everything as text: a completion "42" or "NA" is not a number or a gap. A column without a name, such as
            # the index that pandas writes, has the name that pandas gives it when it reads.
            columns = _columns(path, cells, whole=not Path(copies).exists())  # what has a copy was checked before
            names = [name or f"Unnamed: {i}" for i, name in enumerate(columns)]
            features = datasets.Features(dict.fromkeys(names, datasets.Value("string")))
            table = datasets.Dataset.from_csv(path, features=features, cache_dir=copies, keep_default_na=False, **cells)
        else:
            _ask_hub(path)
            table = datasets.load_dataset(path, source.subset, split=source.split or DEFAULT_SPLIT)
    except UserError:
        raise
    except Exception as error:  # pyarrow, pandas, fsspec and the Hub client all raise their own exceptions
        hub = is_hub_name(path) and not Path(path).exists()
        raise UserError(
            f"could not be read: {first_line(error.__cause__ or error)}",
            where=path,
            expected="an existing file, or a dataset on the Hub that can be reached" if hub else "a complete file",
            fix="with HF_HUB_OFFLINE=1 a dataset that was loaded before comes from the cache" if hub else None,
        ) from error
    table = _split(table, source.split, path)
    if not len(table):
        raise no_rows(path)
    return table


def _split(table: Any, split: str | None, path: str) -> Any:
    """The requested split of a table that has several or is one."""
    import datasets

    if isinstance(table, datasets.DatasetDict):
        wanted = split or DEFAULT_SPLIT
        if wanted not in table:
            raise UserError(
                f"no split {wanted!r}", where=path, expected=f"one of {', '.join(map(str, table))}", fix="set `split`"
            )
        return table[wanted]
    if split and str(table.split) != split:
        is_one = f"{table.split}, the only split" if table.split else "no split: the folder is not divided into splits"
        raise UserError(f"no split {split!r}", where=path, expected=is_one, fix="remove `split`")
    return table

"""Files that are complete or unchanged: written under another name, then renamed. A kill or a full disk leaves nothing
half written.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from instructlit.errors import UserError


@contextmanager
def replacing(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file (UTF-8) that takes the place of `path` at the end of the block, unless the block fails.

    A pipe or a device is written to as it is: root would make a file of /dev/null, for every program of the machine.

    Args:
        path: the file; missing folders are made.
        newline: as for `open`.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline=newline) as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("w", encoding="utf-8", newline=newline) as file:
            yield file
        beside.replace(path)
    except BaseException:
        with suppress(OSError):  # a half takes room that may be what is missing
            beside.unlink(missing_ok=True)
        raise


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Writes pieces of text, each with its own end of line.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with replacing(Path(path)) as file:
            file.writelines(lines)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(path)) from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a text; raises as `write_lines` does."""
    write_lines(path, [text])


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value for programs and people to read; raises as `write_lines` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON Lines; raises as `write_lines` does."""
    write_lines(path, json_lines(rows))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Each row as a line of JSON Lines, with its end."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

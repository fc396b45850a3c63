"""A record beside a file of what a command made it from; the next call knows by it that the file is finished."""

import json
from pathlib import Path
from typing import Any

from instructlit.errors import UserError
from instructlit.files import write_json


def read_made(file: Path) -> dict[str, Any]:
    """The record of a file; empty where it has none.

    Raises:
        UserError: the record is damaged.
    """
    path = _beside(file)
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(
            "is damaged",
            where=str(path),
            expected=f"what {file.name} was made from, as JSON",
            fix=f"put it back, or remove it: the command that wrote it then makes {file.name} again",
        )
    return record


def write_made(file: Path, record: dict[str, Any]) -> None:
    """Writes the record of a finished file.

    Raises:
        UserError: it cannot be written.
    """
    write_json(_beside(file), record)


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.stem}.made.json")

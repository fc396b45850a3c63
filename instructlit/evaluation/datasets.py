"""Rows of an evaluation set: a local file in any form that training reads (or .tsv), or a name on the Hub."""

import csv
from pathlib import Path
from typing import Any

from instructlit.data.readers import open_source
from instructlit.data.sources import Place, Source, as_source
from instructlit.errors import UserError

_TABLES = {".csv": ",", ".tsv": "\t"}


def read_rows(data: Place, option: str, *needed: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a set.

    Args:
        data: a file, glob, `datasets` folder or Hub name; a `Source` names a split and a subset too.
        option: the option that named it, for messages.
        needed: fields that every row must have.
        limit: the first so many only.

    Raises:
        UserError: nothing there, or a row without a field that is needed.
    """
    source = as_source(data)
    path = source.path
    if path.lower().endswith(tuple(_TABLES)):
        rows = _table(path, option)[:limit]
        places = [f"{path}: row {number}" for number in range(1, len(rows) + 1)]
    else:
        files = open_source(source, option)
        where = [(file, i) for file in files for i in range(len(file))][:limit]
        rows = [file[i] for file, i in where]
        places = [file.where(i) for file, i in where]
    for row, place in zip(rows, places, strict=True):
        for name in needed:
            if name not in row:
                raise UserError(
                    f"the row has no {name}",
                    where=place,
                    expected=f"the fields {', '.join(needed)}",
                    fix=f"it has {', '.join(map(str, row))}; is this the right file for {option}?",
                )
    return rows


def missing_extra(error: ModuleNotFoundError, where: str, otherwise: str = "") -> UserError:
    """What to say where a package of the extra `eval` is not installed."""
    fix = "pip install 'instructlit[eval]'" + (f", or {otherwise}" if otherwise else "")
    return UserError(f"{error.name} is not installed", where=where, fix=fix)


def needed(value: Any, option: str, what: str) -> Any:
    """`value`, which has to be given.

    Raises:
        UserError: it is not.
    """
    if not value:
        raise UserError(f"no {what} named", where=option, fix=f"--options {option}=FILE")
    return value


def local_or(data: Place | None, name: str, subset: str | None = None, split: str | None = None) -> Source:
    """The data given, or a set of the Hub."""
    return as_source(data) if data else Source(name, subset=subset, split=split)


def _table(path: str, option: str) -> list[dict[str, Any]]:
    """Cells as text, whatever the columns are called: published tables have columns without a name."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no such file: {path}", where=option, expected="an existing table")
    ending = file.suffix.lower()
    quoting = csv.QUOTE_NONE if ending == ".tsv" else csv.QUOTE_MINIMAL
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            return list(csv.DictReader(opened, delimiter=_TABLES[ending], quoting=quoting))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"could not be read: {error}", where=path, expected="a table in UTF-8") from error

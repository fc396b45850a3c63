"""Rows of an evaluation set: a local file in any form that training reads, or a name on the Hub."""

from typing import Any

from instructlit.data.readers import open_source
from instructlit.data.sources import Place, Source, as_source
from instructlit.errors import UserError


def read_rows(data: Place, option: str, *needed: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a set.

    Args:
        data: a file, glob, `datasets` folder or Hub name; a `Source` names a split and a subset too.
        option: the option that named it, for messages.
        needed: fields that every row must have.
        limit: read only this many rows, the first ones.

    Raises:
        UserError: no rows, or a row without a field that is needed.
    """
    files = open_source(as_source(data), option)
    places = [(file, i) for file in files for i in range(len(file))][:limit]
    rows = [file[i] for file, i in places]
    for row, (file, i) in zip(rows, places, strict=True):
        for name in needed:
            if name not in row:
                raise UserError(
                    f"the row has no field `{name}`",
                    where=file.where(i),
                    expected=f"the fields {', '.join(needed)}",
                    fix=f"it has {', '.join(map(str, row))}; is this the right file for {option}?",
                )
    return rows


def needed(value: Any, option: str, what: str) -> Any:
    """`value`, which must be given.

    Raises:
        UserError: it is not.
    """
    if not value:
        raise UserError(f"no {what} given", where=option, fix=f"--options {option}=FILE")
    return value


def local_or(data: Place | None, name: str, subset: str | None = None, split: str | None = None) -> Source:
    """The data given, or else a data set on the Hub."""
    return as_source(data) if data else Source(name, subset=subset, split=split)

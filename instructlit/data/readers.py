"""The reader of each kind of file: by the suffix of its name, or by its first bytes if that is not enough."""

from pathlib import Path

from instructlit.data.json_rows import JsonArray, JsonLines
from instructlit.data.rows import Rows
from instructlit.data.sources import Source, expand, is_dataset_folder
from instructlit.data.tables import CELLS, Table
from instructlit.errors import UserError


def open_source(source: Source, option: str) -> list[Rows]:
    """Every file of a source, ready to be read.

    Raises:
        UserError: if a file is missing, empty, binary, or does not match its suffix.
    """
    return [_open(source, path) for path in expand(source, option)]


def _open(source: Source, path: str) -> Rows:
    for name, found in (("subset", source.subset), ("split", None if is_dataset_folder(Path(path)) else source.split)):
        if found and Path(path).exists():
            raise UserError(
                f"found {found!r}",
                where=f"source {path}: {name}",
                expected=f"no {name}: a file of this kind has no {name}s",
                fix=f"remove `{name}`, or give the file that contains it",
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
        raise UserError(
            "the file is binary, or text in an encoding other than UTF-8", where=path, expected="UTF-8 text"
        )
    if Path(path).suffix.lower() in CELLS:
        return Table(source, path)
    # A .json file may hold an array or JSON Lines; its first character decides.
    if path.lower().endswith(".json") and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
        return JsonArray(source, path)
    return JsonLines(source, path)

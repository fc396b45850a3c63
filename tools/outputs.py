"""Where a command writes, told wrong before it works for hours."""

import glob
from pathlib import Path

from instructlit.errors import UserError


def check_output(output: str | Path, *inputs: str, where: str = "--output") -> None:
    """Refuse a file to write that can be none, or that is read from.

    Args:
        output: the file to write.
        inputs: the files and globs that are read.
        where: the option that names the file.

    Raises:
        UserError: it is empty, a folder, or one of the inputs.
    """
    path = Path(output)
    if path.is_dir():  # "" is the folder one is in
        raise UserError(f"{str(output)!r} is a folder", where=where, expected="the name of a file")
    for name in inputs:
        file = Path(name).expanduser()
        if path.resolve() in (read.resolve() for read in (file, *map(Path, glob.glob(str(file), recursive=True)))):
            raise UserError(
                f"{output}, which is read from, would be written over", where=where, expected="a file of its own"
            )

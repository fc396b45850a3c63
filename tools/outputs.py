"""Where a command writes, told wrong before it works for hours."""

import glob
import os
from pathlib import Path

from instructlit.errors import UserError


def check_output(output: str | Path, *inputs: str, where: str = "--output") -> None:
    """Refuse a file to write that can be none, or that is read from.

    Args:
        output: the file to write.
        inputs: the files and globs that are read.
        where: the option that names the file.

    Raises:
        UserError: it is empty, a folder, or one of the inputs; its folder is none, or may not be written in.
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
    if not path.exists():  # /dev/null is written to by those who may not write in /dev
        check_folder(path.parent, where)


def check_folder(output: str | Path, where: str = "--output") -> None:
    """Refuse a folder to write in that can be none.

    Args:
        output: the folder, which is made later where it is not there.
        where: the option that names it.

    Raises:
        UserError: it is empty, a file or in one, or may not be written in.
    """
    if not str(output):
        raise UserError("is empty", where=where, expected="the name of a folder")
    path = Path(output)
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file", where=where, expected="a folder, or a free name for one")
    if not os.access(there, os.W_OK):
        raise UserError(f"{there} may not be written in", where=where)

"""Checks where a command will write, before it works for hours."""

import glob
import os
from pathlib import Path

from instructlit.errors import UserError


def check_output(output: str | Path, *inputs: str, where: str = "--output") -> None:
    """Refuse an output file that cannot be written, or that is also an input.

    Args:
        output: the file to write.
        inputs: the files and globs that are read.
        where: the option that names the file.

    Raises:
        UserError: it is empty, a folder, or one of the inputs; its folder is a file or not writable.
    """
    path = Path(output)
    if path.is_dir():  # "" is the current folder
        raise UserError(f"{str(output)!r} is a folder", where=where, expected="a file name")
    for name in inputs:
        file = Path(name).expanduser()
        if path.resolve() in (read.resolve() for read in (file, *map(Path, glob.glob(str(file), recursive=True)))):
            raise UserError(f"{output} is also an input and would be overwritten", where=where, expected="another file")
    if not path.exists():  # /dev/null is writable where /dev is not
        check_folder(path.parent, where)


def check_folder(output: str | Path, where: str = "--output") -> None:
    """Refuse an output folder that cannot be created or written to.

    Args:
        output: the folder, which is created later if it does not exist.
        where: the option that names it.

    Raises:
        UserError: it is empty, a file or below one, or not writable.
    """
    if not str(output):
        raise UserError("is empty", where=where, expected="a folder name")
    path = Path(output)
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file", where=where, expected="a folder, or a name that is not taken")
    if not os.access(there, os.W_OK):
        raise UserError(f"{there} is not writable", where=where)

"""Reading the files of a world's data folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructlit.errors import UserError
from instructlit.types import Prompt
from instructlit.world import World


def read_world(data: Path) -> World:
    """The world whose data is in a folder.

    Raises:
        UserError: the folder has no world.json.
    """
    path = data / "world.json"
    if not path.exists():
        raise UserError("no such file", where=str(path), fix="write the world's data first: instructlit world")
    return World(json.loads(path.read_text(encoding="utf-8"))["seed"])


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file, none where there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file.

    Raises:
        UserError: the file is missing or empty.
    """
    found = [Prompt(row["prompt"], row.get("user"), row.get("use_case")) for row in rows(path)]
    if not found:
        raise UserError("there are no prompts", where=str(path), fix="write the world's data again: instructlit world")
    return found

"""The recipes of the stages: written for the working directory, as for `fit`, but run in a round's folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instructlit.cli.config import Config, compose, read
from instructlit.cli.files import INPUTS, check_files, in_force


def recipe(files: Sequence[str]) -> Config:
    """The configs of a stage, later ones overriding earlier, without importing the classes they name."""
    return compose([read(file) for file in files], lambda _: None)


def moved(config: Config, given: Sequence[str], move: Callable[[str], str]) -> dict[str, str]:
    """The options of a recipe that are relative paths, rewritten as seen from another folder.

    Args:
        config: the recipe.
        given: options on the command line, which override those of the recipe.
        move: rewrites a relative path.

    Raises:
        UserError: if a path does not exist.
    """
    check_files(config, [(option, None) for option in given])
    keys = [key[: 1 + next(at for at, name in enumerate(key) if name in INPUTS)] for key, _ in in_force(config, given)]
    found = {".".join(key): config.get(key) for key in keys}
    there = {option: _moved(value, move) for option, value in found.items()}
    return {o: v if isinstance(v, str) else json.dumps(v) for o, v in there.items() if v != found[o]}


def _moved(value: Any, move: Callable[[str], str]) -> Any:
    """Rewrites a path, a source with a path and a weight, or a list of these."""
    if isinstance(value, list):
        return [_moved(one, move) for one in value]
    if isinstance(value, dict):
        return {name: _moved(one, move) if name == "path" else one for name, one in value.items()}
    return move(value) if isinstance(value, str) and not Path(value).expanduser().is_absolute() else value

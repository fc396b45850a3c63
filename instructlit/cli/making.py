"""The message where a class named in a config fails in its constructor."""

import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from instructlit.cli.config import Config, Key
from instructlit.cli.types import import_class
from instructlit.errors import UserError, chain, class_path, first_line, raised_at

MAKERS = ("jsonargparse._instantiation", "lightning.pytorch.cli")
"""Modules whose functions construct a class that they hold as `class_type`."""


class Unmade(UserError):
    """A class from outside instructlit raised an error in its constructor.

    Args:
        kind: the class.
        error: what was raised.
    """

    def __init__(self, kind: Any, error: BaseException):
        self.kind, self.error = kind, error
        said = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
        place = raised_at(error, kind)
        own = "" if "site-packages" in place else f" ({place})"
        super().__init__(
            f"{class_path(kind)} cannot be constructed: {said}{own}",
            fix="INSTRUCTLIT_DEBUG=1 shows the stack trace",
        )


def fault_of(error: BaseException) -> UserError | None:
    """The useful error behind one from the parser, which lists every alternative that it would have accepted.

    Returns:
        The UserError of one of our classes; else `Unmade` where another class failed; None for other errors.
    """
    causes = list(chain(error))
    said = next((cause for cause in causes if isinstance(cause, UserError)), None)
    made = ((kind, cause) for cause in causes if (kind := _made(cause)) is not None)
    return said or next((Unmade(kind, cause) for kind, cause in made), None)


def place_of(kind: Any, config: Config, options: Sequence[tuple[str, str | None]]) -> str | None:
    """The option that names a class, with its file and line; None where none does, or more than one. The command line
    overrides the config.

    Args:
        kind: the class.
        config: the composed config.
        options: the names and values on the command line.
    """
    on_line = [f"--{option}" for option, value in options if value and _names(value, kind)]
    found = on_line or [config.where(key) for key, path in _paths(config.values, ()) if _names(path, kind)]
    return found[0] if len(found) == 1 else None


def _made(error: BaseException) -> Any | None:
    """The innermost class whose constructor raised an error; None for one of ours, where the error is a bug."""
    kinds = [
        frame.f_locals["class_type"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") in MAKERS and "class_type" in frame.f_locals
    ]
    return kinds[-1] if kinds and not kinds[-1].__module__.startswith("instructlit.") else None


def _paths(values: Any, key: Key) -> Iterator[tuple[Key, str]]:
    if isinstance(values, dict):
        for name, value in values.items():
            if name == "class_path" and isinstance(value, str):
                yield (*key, name), value
            else:
                yield from _paths(value, (*key, str(name)))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from _paths(value, (*key, str(index)))


def _names(path: str, kind: Any) -> bool:
    if path.rpartition(".")[2] != getattr(kind, "__name__", None):
        return False
    try:
        return import_class(path, [kind] if isinstance(kind, type) else [], "") is kind
    except UserError:
        return False
